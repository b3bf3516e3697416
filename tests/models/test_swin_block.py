"""The Swin block can be read on a few pages, before a reader meets any backend."""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "vitswin_jax"
FILES = ("models/swin_block", "nn/block", "nn/attention", "nn/windows")
SHARED = {"BlockOptions", "ResidualBlock"}  # not needed to follow attention: what blocks are given
BACKENDS = r"\b(cpu|gpu|tpu|xla|cuda|cudnn|triton|fused|in_pairs|platform|backend|barrier)\b"


def definitions():
    """Every function and class of the four files, by name, with its source."""
    found = {}
    for name in FILES:
        text = (PACKAGE / name).with_suffix(".py").read_text()
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                found[node.name] = node, text.splitlines()[first - 1 : node.end_lineno]
    return found


def names_in(node):
    for part in ast.walk(node):
        if isinstance(part, ast.Name):
            yield part.id


def read_from(start, found):
    """The definitions that a reader of `start` meets, following every name, in order."""
    reached, queue = [], [start]
    while queue:
        name = queue.pop(0)
        if name in found and name not in reached:
            reached.append(name)
            queue += set(names_in(found[name][0])) - SHARED
    return reached


def test_a_swin_block_its_attention_and_its_windows_are_300_lines_without_a_backend():
    found = definitions()
    # The block reaches the two through names it is created with: `attention`, `execution`.
    met = [*read_from("SwinBlock", found), *read_from("WindowAttention", found)]
    met += [*read_from("attend", found), *read_from("map_windows", found)]
    met = dict.fromkeys(met)
    assert {"SelfAttention", "attend", "relative_position_index", "shifted_window_mask"} <= set(met)
    text = "\n".join(line for name in met for line in found[name][1])
    assert len(text.splitlines()) <= 300
    assert not re.findall(BACKENDS, text, re.IGNORECASE)
