"""Files are written whole or not at all, and locks are held, on every kind of machine."""

from __future__ import annotations

import errno
import os
import warnings

import pytest

from fastvae.files import locked, whole_file

fcntl = pytest.importorskip("fcntl", reason="Windows has no flock")


def test_files_are_flushed_through_a_handle_that_may_write(tmp_path, monkeypatch):
    """As Windows has it: flushing through a read-only handle is EBADF."""
    flushed = []

    def fsync(descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flushed.append(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with whole_file(tmp_path / "x.txt") as unfinished:
        unfinished.write_text("whole")
    assert (tmp_path / "x.txt").read_text() == "whole"
    assert flushed


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
@pytest.mark.parametrize("wait", [True, False])
def test_without_locks_the_work_goes_on_after_a_warning(tmp_path, monkeypatch, code, wait):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
    with pytest.warns(UserWarning, match="file system without locks"), locked(tmp_path / ".lock", wait=wait) as alone:
        assert alone


def test_other_errors_of_locks_are_errors(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    with pytest.raises(OSError, match="I/O error"), locked(tmp_path / ".lock", wait=False):
        pass


def test_a_lock_is_for_one_process_alone(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with locked(tmp_path / ".lock", wait=False) as first, locked(tmp_path / ".lock", wait=False) as second:
            assert (first, second) == (True, False)
        with locked(tmp_path / ".lock", wait=False) as again:
            assert again
