"""How the output folder is laid out: the names of its files, and what its configs say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from onnx_tailor.errors import ModelError
from onnx_tailor.graph.file.places import ONNX, home
from onnx_tailor.graph.file.save import Storage, plan_storage
from onnx_tailor.graph.model import TailorModel
from onnx_tailor.output import transformers_js
from onnx_tailor.output.companions import Companion, companions, name_models

Client = Literal["transformers.js"]


@dataclass(frozen=True)
class Arrangement:
    """Where everything that a run writes will lie."""

    storage: Storage
    companions: tuple[Companion, ...]
    subfolder: str = ""
    """Of the models and their weights within the output folder; "" for the folder itself."""

    def inside(self, name: str) -> str:
        """Return the path from the output folder of a model or a data file."""
        return f"{self.subfolder}/{name}" if self.subfolder else name


def arrange(
    models: Sequence[TailorModel],
    source: Path,
    *,
    client: Client | None = None,
    per_model: bool = False,
    max_file: int | None = None,
) -> Arrangement:
    """Lay out the output of models that were read from `source`, a file or a folder.

    By default all files keep their names, side by side; a `client` has its own ways.

    Raises:
        ModelError: the client cannot run the model, or lacks a config.
        UsageError: one weight alone is larger than `max_file`, or two files would have one name.
    """
    beside = companions(home(source))
    if client is None:
        found = Arrangement(plan_storage(models, per_model=per_model, max_file=max_file), ())
    else:
        found = _for_transformers_js(models, max_file)
        beside = [_configured(beside, source, models, found.storage), *(c for c in beside if c.name != "config.json")]
    renamed = {model.path.name: found.inside(model.file_name) for model in models}
    return Arrangement(found.storage, tuple(name_models(each, renamed) for each in beside), found.subfolder)


def _for_transformers_js(models: Sequence[TailorModel], max_file: int | None) -> Arrangement:
    transformers_js.name_models(models)
    for model in models:
        transformers_js.fix_caches(model)
    stores = tuple(f"{model.file_name}_data" for model in models)
    return Arrangement(plan_storage(models, max_file=max_file or transformers_js.MAX_SHARD, stores=stores), (), ONNX)


def _configured(
    beside: Sequence[Companion], source: Path, models: Sequence[TailorModel], storage: Storage
) -> Companion:
    config = next((each for each in beside if each.name == transformers_js.CONFIG), None)
    if config is None:
        raise ModelError(
            f"{home(source)}: holds no config.json, which transformers.js reads; copy it from the original model"
        )
    return transformers_js.configure(config, models, storage)
