"""The Git repository that this program runs from, and other commits of it beside the user's checkout."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from infsa_bench.errors import SpecError

HERE = Path(__file__).resolve()


def commit_here() -> str | None:
    """Return the commit that this code is of, with a ``+`` where it was changed since; None outside a repository."""
    try:
        _git("ls-files", "--error-unmatch", str(HERE), folder=HERE.parent)
        commit = _git("rev-parse", "HEAD", folder=HERE.parent)
        is_dirty = bool(_git("status", "--porcelain", "--untracked-files=no", folder=HERE.parent))
    except SpecError:
        return None
    return commit + ("+" if is_dirty else "")


@contextlib.contextmanager
def worktree(ref: str, repository: Path) -> Iterator[Path]:
    """Lend a folder with the files of ``ref``; the checkout of ``repository`` and its branches are left alone.

    Raises:
        SpecError: no repository, no such commit, or one that holds no infsa-bench.
    """
    commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}", folder=repository)
    with tempfile.TemporaryDirectory(prefix="infsa-bench-") as folder:
        path = Path(folder) / "base"
        _git("worktree", "add", "--quiet", "--detach", str(path), commit, folder=repository)
        try:
            if not (path / "bench" / "infsa_bench").is_dir():
                raise SpecError(f"{ref} holds no infsa-bench")
            yield path
        finally:
            with contextlib.suppress(SpecError):
                _git("worktree", "remove", "--force", str(path), folder=repository)


def _git(*words: str, folder: Path) -> str:
    try:
        done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SpecError(f"git {words[0]} cannot be run: {error}") from None
    if done.returncode:
        reason = done.stderr.strip().splitlines()
        raise SpecError(f"git {words[0]} failed in {folder}: {reason[-1] if reason else 'no such commit'}")
    return done.stdout.strip()
