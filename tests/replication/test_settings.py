"""What the uploader is told."""

from __future__ import annotations

from mirrorfs.objectstore.url import StoreOptions
from mirrorfs.replication.settings import UploaderSettings


def test_settings_go_over_a_pipe_as_one_line() -> None:
    settings = UploaderSettings(
        "/mnt/a\nb", "/state", 3, "bucket", "name", store=StoreOptions(endpoint_url="http://store"), parallel=2
    )
    assert UploaderSettings.decode(settings.encode()) == settings
    assert settings.encode().endswith(b"\n")
    assert settings.encode().count(b"\n") == 1
