"""Data sets in the hub's layout, read with `datasets`: data files, and a README.md whose front
matter declares configs.

No code of a repository is run (`datasets` has no loading scripts any more), and nothing is asked of
the hub.
"""

import glob
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import datasets
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard

from leantune.errors import BadInput
from leantune.fetch.cache import cache_folder


def read_dataset(
    folder: Path,
    splits: Mapping[str, str],
    columns: Mapping[str, str],
    name: str,
    config: str | None = None,
) -> dict[str, datasets.Dataset]:
    """The splits of a data set, with the columns that are wanted. Both mappings go from our name to
    the data set's own: `{"test": "validation"}`, `{"text": "sentence"}`.

    `config` is needed where the README declares several. Features, class names among them, are
    those of the README, or of the files where it has none. `name` is for errors.

    Raises BadInput for a config, split, column or file that is not there, or a file that cannot be
    read.
    """
    config, declared, features = _declared(folder, config, name)
    if declared is not None:
        _require("split", splits, declared, name, config)
        declared = {split: declared[split] for split in splits.values()}
        for split, patterns in declared.items():
            if not any(glob.glob(pattern, root_dir=folder, recursive=True) for pattern in patterns):
                raise BadInput(
                    f"data set {name} lacks files of config '{config}' (split '{split}': "
                    f"{', '.join(patterns)}); "
                    "correct `files:` in the source, or complete the mirror"
                )
    with _no_bars():
        try:
            # The files are given, as `datasets` else looks for those of the first config too.
            loaded = datasets.load_dataset(
                str(folder),
                config,
                data_files=declared,
                features=features,
                cache_dir=str(cache_folder() / "datasets"),
            )
        except (datasets.exceptions.DatasetsError, OSError, ValueError, TypeError) as error:
            reason = str(error.__cause__ or error).strip().splitlines() or [type(error).__name__]
            raise BadInput(
                f"data set {name} cannot be read ({reason[0][:300]}); fetch its files again"
            ) from error
    _require("split", splits, loaded, name, config)
    for split in splits.values():
        _require("column", columns, loaded[split].column_names, name, config)
    ours = {theirs: mine for mine, theirs in columns.items()}
    return {
        role: loaded[split].select_columns(list(ours)).rename_columns(ours)
        for role, split in splits.items()
    }


def _declared(
    folder: Path, config: str | None, name: str
) -> tuple[str | None, dict[str, list[str]] | None, datasets.Features | None]:
    """(config, patterns of its files by split, features) from the README; None where it does not
    say."""
    readme = folder / "README.md"
    try:
        card = DatasetCard.load(readme).data if readme.is_file() else None
        configs = MetadataConfigs.from_dataset_card_data(card) if card else {}
        infos = DatasetInfosDict.from_dataset_card_data(card) if card else {}
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise BadInput(
            f"data set {name}: the front matter of {readme} cannot be read ({str(error)[:200]})"
        ) from error
    if not configs:
        return config, None, None
    if config is None and len(configs) == 1:
        config = next(iter(configs))
    if config not in configs:
        asked = f"no config '{config}'" if config else "several configs, and `dataset:` names none"
        raise BadInput(f"data set {name} has {asked}; it has {', '.join(configs)}")
    files = datasets.data_files.sanitize_patterns(configs[config]["data_files"])
    return config, files, infos[config].features if config in infos else None


def _require(
    what: str, wanted: Mapping[str, str], known: Collection[str], name: str, config: str | None
) -> None:
    for one in wanted.values():
        if one not in known:
            of = f" of config '{config}'" if config else ""
            raise BadInput(f"data set {name}{of} has no {what} '{one}'; it has {', '.join(known)}")


@contextmanager
def _no_bars() -> Iterator[None]:
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
