"""What goes to the hub of a finished run."""

from __future__ import annotations

import pytest


def test_only_the_model_is_pushed(tmp_path, monkeypatch):
    """A run's folder also holds prompts and samples. (The hub is out of a test's reach: its client is recorded.)"""
    from huggingface_hub import HfApi

    from text_sdft.core import SDFTConfig, UserError
    from text_sdft.experiments.run import _local, _push

    calls = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, name, **_: type("Repo", (), {"repo_id": f"me/{name}"})())
    monkeypatch.setattr(
        HfApi, "upload_folder", lambda self, **given: calls.append((given["repo_id"], given["folder_path"]))
    )
    args = SDFTConfig(str(tmp_path / "run"), push_to_hub=True, use_cpu=True)
    _push(args, tmp_path / "run" / "model")
    assert calls == [("me/run", tmp_path / "run" / "model")]
    assert not _local(args).push_to_hub and args.push_to_hub

    def fail(self, name, **_):
        raise OSError("no network")

    monkeypatch.setattr(HfApi, "create_repo", fail)
    with pytest.raises(UserError, match="could not be pushed to the hub: no network"):
        _push(args, tmp_path / "run" / "model")
