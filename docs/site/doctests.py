"""An extension of Griffe that shows the doctests of the reference as code."""

import re
import textwrap

import griffe

_DOCTEST = re.compile(r"^>>> .*(?:\n.+)*(?:\n\n>>> .*(?:\n.+)*)*", re.MULTILINE)


class Doctests(griffe.Extension):
    """Puts each doctest into a section "Examples", where Griffe looks for code."""

    def on_object(self, *, obj, **_):
        """Changes the docstring of an object; its source stays as it is."""
        if obj.docstring:
            obj.docstring.value = _DOCTEST.sub(
                lambda found: "Examples:\n" + textwrap.indent(found[0], "    "),
                obj.docstring.value,
            )
