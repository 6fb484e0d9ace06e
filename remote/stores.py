"""The file systems behind addresses, and what their errors mean to the user."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import fsspec

from onnx_tailor.errors import UsageError, innermost
from onnx_tailor.remote import Url

_IDENTITY = (
    "ETag",
    "etag",
    "generation",
    "md5Hash",
    "content_md5",
    "mtime",
    "LastModified",
    "last_modified",
    "created",
)
"""What file systems call that which changes with a file's content, the best first."""


def file_system(url: Url) -> tuple[Any, str]:
    """Return the file system of `url` and the path in it. Credentials and endpoints are those of the environment.

    Raises:
        UsageError: there is none for such an address, or its package is not installed.
    """
    try:
        found: tuple[Any, str] = fsspec.core.url_to_fs(url.text, use_listings_cache=False)
    except ImportError as error:
        raise UsageError(
            f"{url}: {innermost(error)}; s3:// comes with onnx-tailor[cluster], others with their packages, here and "
            "on every worker"
        ) from error
    except ValueError as error:
        raise UsageError(f"{url}: is no address of a store ({innermost(error)})") from error
    return found


def identity(info: Mapping[str, Any]) -> tuple[None, int, int]:
    """Return what stands for the content of a file: its bytes, and a number that changes with them."""
    mark = next((f"{key}={info[key]}" for key in _IDENTITY if info.get(key)), "")
    return None, int(info["size"]), int.from_bytes(hashlib.sha256(mark.encode()).digest()[:7], "big")
