"""Processes whose forward passes take long, so that requests are running when something happens."""

from __future__ import annotations

from pathlib import Path

_PATCH = """
import asyncio, importlib.abc, importlib.util, sys

def slow(core):
    real = core.ReplicaCore.run
    async def run(self, *args):
        await asyncio.sleep({seconds})
        return await real(self, *args)
    core.ReplicaCore.run = run

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "rlx_serve.replica.core":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            slow(module)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def slow_passes(folder: Path, seconds: float) -> None:
    """Have every process with a folder in its PYTHONPATH wait so long before each forward pass."""
    text = _PATCH.replace("{seconds}", str(seconds))
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
