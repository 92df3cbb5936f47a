"""Data sets: upload, register, look, delete."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal, TypeAlias

from headrace.datasets.v1.dataset_pb2 import Dataset, DatasetFormat, DatasetVersion
from headrace.datasets.v1.dataset_service_pb2 import (
    DeleteDatasetRequest,
    GetDatasetRequest,
    ListDatasetsRequest,
    ListDatasetsResponse,
    ListDatasetVersionsRequest,
    ListDatasetVersionsResponse,
    RegisterDatasetRequest,
    UploadDatasetHeader,
    UploadDatasetRequest,
    UploadDatasetResponse,
)
from headrace.names import dataset_name
from headrace.pages import Page, collect
from headrace.uploads import Source, open_content
from headrace.wire import Wire

FormatName: TypeAlias = Literal["csv", "parquet", "npz", "image_zip"]


class DatasetCalls:
    """The part of a client that keeps data sets."""

    _wire: Wire

    async def upload_dataset(
        self,
        dataset: str,
        source: Source,
        *,
        format: FormatName | None = None,  # noqa: A002 - the contract's word
    ) -> DatasetVersion:
        """Store a file, bytes, or NumPy arrays by name as a version of a data set, and return that version.

        The format is told by the file's ending (.csv, .parquet, .npz, or .zip with one folder of images for each
        class) unless given; bytes need it.  Arrays share their first axis.  The same content is the same version, so
        uploading again is harmless, and done by itself when the server was away for a moment.
        """
        async with open_content(source) as content:
            header = UploadDatasetHeader(
                dataset=dataset_name(dataset),
                format=_format(format),
                file_name=content.file_name,
                digest=content.digest,
            )

            async def messages() -> AsyncGenerator[UploadDatasetRequest, None]:
                yield UploadDatasetRequest(header=header)
                async for chunk in content.chunks():
                    yield UploadDatasetRequest(chunk=chunk)

            async def upload(_: float | None) -> UploadDatasetResponse:
                async with aclosing(messages()) as stream:
                    return await self._wire.send(self._wire.datasets.UploadDataset, stream)

            return (await self._wire.repeat(upload, None)).dataset_version

    async def register_dataset(
        self,
        dataset: str,
        uri: str,
        *,
        format: FormatName | None = None,  # noqa: A002 - the contract's word
        timeout: float | None = None,
    ) -> DatasetVersion:
        """Have the server copy a file or folder that it can reach ("file:///data/flowers") into its store."""
        request = RegisterDatasetRequest(dataset=dataset_name(dataset), uri=uri, format=_format(format))
        answer = await self._wire.call_safely(self._wire.datasets.RegisterDataset, request, timeout or 600.0)
        return answer.dataset_version

    async def get_dataset(self, dataset: str) -> Dataset:
        """One data set with its newest version.  Raises DatasetNotFound."""
        request = GetDatasetRequest(name=dataset_name(dataset))
        return (await self._wire.call_once(self._wire.datasets.GetDataset, request)).dataset

    async def list_datasets(self, *, limit: int | None = None) -> list[Dataset]:
        """All data sets by name, or the first `limit`."""

        async def page(size: int, token: str) -> Page[Dataset]:
            request = ListDatasetsRequest(page_size=size, page_token=token)
            answer: ListDatasetsResponse = await self._wire.call_once(self._wire.datasets.ListDatasets, request)
            return Page(answer.datasets, answer.next_page_token)

        return await collect(page, limit)

    async def list_dataset_versions(self, dataset: str, *, limit: int | None = None) -> list[DatasetVersion]:
        """The versions of a data set, newest first."""

        async def page(size: int, token: str) -> Page[DatasetVersion]:
            request = ListDatasetVersionsRequest(dataset=dataset_name(dataset), page_size=size, page_token=token)
            answer: ListDatasetVersionsResponse = await self._wire.call_once(
                self._wire.datasets.ListDatasetVersions, request
            )
            return Page(answer.dataset_versions, answer.next_page_token)

        return await collect(page, limit)

    async def delete_dataset(self, dataset: str) -> None:
        """Delete a data set with all its versions.  Raises InUse while a live job uses it."""
        await self._wire.call_once(self._wire.datasets.DeleteDataset, DeleteDatasetRequest(name=dataset_name(dataset)))


def _format(name: FormatName | None) -> DatasetFormat.ValueType:
    if name is None:
        return DatasetFormat.DATASET_FORMAT_UNSPECIFIED
    return DatasetFormat.Value(f"DATASET_FORMAT_{name.upper()}")
