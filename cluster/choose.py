"""Which executor the user asked for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from onnx_tailor.errors import UsageError
from onnx_tailor.weights.tasks import Executor
from onnx_tailor.weights.threads import Threads

THREADS = "threads"


def executor_of(name: str) -> AbstractContextManager[Executor]:
    """Return what carries tasks out: `threads` of this process, or the workers of `dask://HOST:PORT`.

    Raises:
        UsageError: there is no such executor, or what it needs is not installed.
        OutputError: no cluster answers there, or its workers cannot compute what this process would.
    """
    if name == THREADS:
        return nullcontext(Threads())
    scheme, separator, address = name.partition("://")
    if scheme != "dask" or not separator or ":" not in address:
        raise UsageError(f"{name}: is no executor; say `{THREADS}`, or dask://HOST:PORT for the workers of a cluster")
    try:
        import distributed  # noqa: F401  # only this executor needs it, and it takes long to import
    except ModuleNotFoundError as error:
        raise UsageError(f"{name}: needs Dask; install onnx-tailor[cluster], here and on every worker") from error
    from onnx_tailor.cluster.executor import connected

    return connected(address)
