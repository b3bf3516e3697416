"""A Hugging Face hub on loopback, whose own package speaks to it in this process."""

import sys

import pytest
from hub_server import serving_hub

TOKEN = "hf_AlicesOwnSecret"


def forget_sessions():
    """Has the hub's package connect anew; older ones decide then whether they are offline."""
    utils = sys.modules.get("huggingface_hub.utils")
    for name in ("reset_sessions", "close_session"):
        getattr(utils, name, lambda: None)()


def go_offline(monkeypatch):
    """Does as HF_HUB_OFFLINE=1 does."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    forget_sessions()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that alice and her organisation lab have a token of, and a cache of its files."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with serving_hub(tokens={TOKEN: ("alice", "lab"), "hf_bob": ("bob",)}) as hub:
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for name, value in {
            "ENDPOINT": hub.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_URL_HOSTS": frozenset({"127.0.0.1"}),
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_STORED_TOKENS_PATH": str(tmp_path / "tokens"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(constants, name, value, raising=False)
        monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template,
                            raising=False)  # fmt: skip
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        forget_sessions()
        yield hub
        forget_sessions()
