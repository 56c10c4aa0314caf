"""The samples of a site: read from its shard and tokenised when they are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apps.base.errors import UserMistake
from apps.base.files import cannot_write
from apps.models.batches import DataSpec, Sample
from apps.models.encoding import Cuts, count_cuts, encode
from apps.training.shard import Shard, enrolled_shard, open_shard, shard_records
from apps.training.shard_index import DamagedShardError, ShardReader


class ShardSamples:
    """The samples of a shard by number; only those that are taken are read.

    Args:
        root: the site's storage.
        sha256: of the shard that the site has enrolled with.
        tokenizer: of the model.
        data: selection of records and their form.

    Raises:
        UserMistake: the site's records are no longer those it has enrolled with.
        StorageError: a damaged shard cannot be written again.
    """

    def __init__(self, root: Path, sha256: str, tokenizer: Any, data: DataSpec) -> None:
        self.root, self.sha256, self.tokenizer, self.data = root, sha256, tokenizer, data
        self.reader = self._opened()

    def __len__(self) -> int:
        return self.reader.count

    def take(self, numbers: Sequence[int], /) -> list[Sample]:
        """Return the samples with these numbers, in this order; see ``ShardSamples`` for errors."""
        try:
            records = self.reader.records(numbers)
        except (DamagedShardError, OSError):
            self.reader = self._repaired()
            records = self.reader.records(numbers)
        return encode(records, self.tokenizer, self.data)

    def _opened(self) -> ShardReader:
        data = self.data
        try:
            return enrolled_shard(self.root, data["source"], data["tasks"], data["per_task"], self.sha256)
        except (DamagedShardError, OSError):
            return self._repaired()

    def _repaired(self) -> ShardReader:
        """Verify the whole shard, write it again if it is damaged, and return a reader of it."""
        shard = written_shard(self.root, self.data)
        if shard.sha256 != self.sha256:
            raise UserMistake("the site's records have changed since it enrolled", file=str(self.root / "shard"))
        return ShardReader(shard.path)


def written_shard(root: Path, data: DataSpec) -> Shard:
    """Return the whole and verified shard of a site; written if it is not there.

    Args:
        root: the site's storage.
        data: selection of records.

    Raises:
        UserMistake: there are no records for the site's tasks.
        StorageError: the storage cannot be written.
    """
    try:
        with _records_found():
            return open_shard(root, data["source"], data["tasks"], data["per_task"])
    except OSError as error:
        raise cannot_write(root, error) from error


@contextmanager
def _records_found() -> Iterator[None]:
    """Turn errors about records that are missing or cannot be read into ``UserMistake``."""
    try:
        yield
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        raise UserMistake(str(error)) from None


def shard_cuts(shard: Shard, load_tokenizer: Callable[[], Any], data: DataSpec, threads: int) -> Cuts:
    """Count a shard's samples that are cut at the campaign's limit of tokens; see ``count_cuts``."""
    return count_cuts(shard_records(shard.path), load_tokenizer, data, threads)
