"""A data set service that keeps what it is sent in memory."""

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from headrace.datasets.v1 import dataset_pb2 as goods, dataset_service_pb2 as pb
from headrace.datasets.v1.dataset_service_pb2_grpc import DatasetServiceServicer
from tests.doubles.refusal import Refusal


class ScriptedDatasets(DatasetServiceServicer):
    """Data sets by name."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.headers: list[pb.UploadDatasetHeader] = []
        self.largest_chunk = 0
        self.num_broken = 0
        """So many uploads are read to the end, and then the connection breaks."""
        self.refuse_after_header: Refusal | None = None

    async def UploadDataset(
        self, request_iterator: AsyncIterator[pb.UploadDatasetRequest], context: Any
    ) -> pb.UploadDatasetResponse:
        source = aiter(request_iterator)
        header = (await anext(source)).header
        self.headers.append(header)
        if self.refuse_after_header is not None:
            await self.refuse_after_header.send(context)
        content = bytearray()
        async for part in source:
            content += part.chunk
            self.largest_chunk = max(self.largest_chunk, len(part.chunk))
        if self.num_broken:
            self.num_broken -= 1
            await Refusal(grpc.StatusCode.UNAVAILABLE, "Socket closed").send(context)
        assert header.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.contents[header.dataset] = bytes(content)
        return pb.UploadDatasetResponse(dataset_version=self._version(header.dataset))

    async def RegisterDataset(self, request: pb.RegisterDatasetRequest, context: Any) -> pb.RegisterDatasetResponse:
        self.contents[request.dataset] = request.uri.encode()
        return pb.RegisterDatasetResponse(dataset_version=self._version(request.dataset))

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Any) -> pb.GetDatasetResponse:
        await self._check(request.name, context)
        return pb.GetDatasetResponse(dataset=self._dataset(request.name))

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Any) -> pb.ListDatasetsResponse:
        return pb.ListDatasetsResponse(datasets=[self._dataset(name) for name in sorted(self.contents)])

    async def ListDatasetVersions(
        self, request: pb.ListDatasetVersionsRequest, context: Any
    ) -> pb.ListDatasetVersionsResponse:
        await self._check(request.dataset, context)
        return pb.ListDatasetVersionsResponse(dataset_versions=[self._version(request.dataset)])

    async def DeleteDataset(self, request: pb.DeleteDatasetRequest, context: Any) -> pb.DeleteDatasetResponse:
        await self._check(request.name, context)
        del self.contents[request.name]
        return pb.DeleteDatasetResponse()

    async def _check(self, name: str, context: Any) -> None:
        if name not in self.contents:
            message = f"{name!r} does not exist"
            await Refusal(grpc.StatusCode.NOT_FOUND, message, "DATASET_NOT_FOUND", {"name": name}).send(context)

    def _dataset(self, name: str) -> goods.Dataset:
        return goods.Dataset(name=name, latest_version=self._version(name), num_versions=1)

    def _version(self, name: str) -> goods.DatasetVersion:
        digest = hashlib.sha256(self.contents[name]).hexdigest()
        return goods.DatasetVersion(
            name=f"{name}/versions/{digest[:16]}",
            format=goods.DatasetFormat.DATASET_FORMAT_NPZ,
            digest=f"sha256:{digest}",
            size_bytes=len(self.contents[name]),
            num_rows=4,
            columns=[goods.Column(name="images", type="float32", shape=[8, 8])],
        )
