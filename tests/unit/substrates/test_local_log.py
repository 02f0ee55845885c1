from __future__ import annotations

import os
from pathlib import Path

from eg_knative.substrates import local_log


def test_a_tail_is_short_and_printable(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert local_log.tail(path) == ""
    path.write_bytes(b"".join(b"line %d\n\n" % n for n in range(1000)) + b"last \x1b[31m\xff end")
    lines = local_log.tail(path).splitlines()
    assert len(lines) == 12
    assert lines[0] == "line 989"
    assert lines[-1] == "last  [31m\N{REPLACEMENT CHARACTER} end"


def test_a_log_that_outgrew_its_limit_is_cut_and_its_writer_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    local_log.trim(path)
    descriptor = local_log.open_log(path)
    os.write(descriptor, b"x" * (local_log.LIMIT_BYTES - 1) + b"y")
    local_log.trim(path)
    assert path.stat().st_size == local_log.LIMIT_BYTES
    os.write(descriptor, b"z")
    local_log.trim(path)
    os.write(descriptor, b"after")
    os.close(descriptor)
    content = path.read_bytes()
    assert content.startswith(b"[cut here")
    assert content.endswith(b"xyzafter")
    assert len(content) < local_log.LIMIT_BYTES / 2
    assert path.stat().st_mode & 0o777 == 0o600
