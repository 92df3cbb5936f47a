"""headrace.datasets.v1.DatasetService: thin between the wire and the catalogue of data sets."""

from headrace.datasets.v1 import dataset_service_pb2 as pb, dataset_service_pb2_grpc as pb_grpc
from headrace_server.errors import InUse, InvalidSpec, Violation
from headrace_server.pages import PageRequest
from headrace_server.rpc.closing import closed_after
from headrace_server.rpc.interceptor import Context, Requests
from headrace_server.rpc.ports import CatalogPort, DeskPort
from headrace_server.rpc.services.uploads import read_chunks, read_header
from headrace_server.rpc.wire.datasets import dataset_id, dataset_to_proto, format_from_proto, version_to_proto


class DatasetService(pb_grpc.DatasetServiceServicer):
    """Keeps the data that jobs train on."""

    def __init__(self, catalog: CatalogPort, desk: DeskPort) -> None:
        self._catalog = catalog
        self._desk = desk

    async def UploadDataset(
        self, requests: Requests[pb.UploadDatasetRequest], context: Context
    ) -> pb.UploadDatasetResponse:
        """Store a content that comes in pieces."""
        header: pb.UploadDatasetHeader = await read_header(requests)
        dataset = dataset_id(header.dataset, "header.dataset")
        async with closed_after(read_chunks(requests)) as chunks:
            version = await self._catalog.store(
                dataset,
                chunks,
                format=format_from_proto(header.format, "header.format"),
                file_name=header.file_name,
                digest=header.digest,
            )
        return pb.UploadDatasetResponse(dataset_version=version_to_proto(version))

    async def RegisterDataset(self, request: pb.RegisterDatasetRequest, context: Context) -> pb.RegisterDatasetResponse:
        """Copy what a URI names."""
        dataset = dataset_id(request.dataset, "dataset")
        if not request.uri:
            raise InvalidSpec([Violation("uri", "is required")])
        asked = format_from_proto(request.format, "format")
        version = await self._catalog.register(dataset, request.uri, format=asked)
        return pb.RegisterDatasetResponse(dataset_version=version_to_proto(version))

    async def GetDataset(self, request: pb.GetDatasetRequest, context: Context) -> pb.GetDatasetResponse:
        """Return one data set."""
        dataset = await self._catalog.get(dataset_id(request.name, "name"))
        return pb.GetDatasetResponse(dataset=dataset_to_proto(dataset))

    async def ListDatasets(self, request: pb.ListDatasetsRequest, context: Context) -> pb.ListDatasetsResponse:
        """Return a page of data sets."""
        page = PageRequest.parse(request.page_size, request.page_token, "datasets")
        found = await self._catalog.list(page)
        return pb.ListDatasetsResponse(datasets=map(dataset_to_proto, found.items), next_page_token=found.next_token)

    async def ListDatasetVersions(
        self, request: pb.ListDatasetVersionsRequest, context: Context
    ) -> pb.ListDatasetVersionsResponse:
        """Return a page of versions."""
        dataset = dataset_id(request.dataset, "dataset")
        page = PageRequest.parse(request.page_size, request.page_token, "dataset_versions", dataset)
        found = await self._catalog.list_versions(dataset, page)
        return pb.ListDatasetVersionsResponse(
            dataset_versions=map(version_to_proto, found.items), next_page_token=found.next_token
        )

    async def DeleteDataset(self, request: pb.DeleteDatasetRequest, context: Context) -> pb.DeleteDatasetResponse:
        """Delete a data set that no live job uses."""
        dataset = dataset_id(request.name, "name")
        user = await self._desk.live_job_using(dataset)
        if user is not None:
            raise InUse(f"datasets/{dataset}", str(user.name))
        await self._catalog.delete(dataset)
        return pb.DeleteDatasetResponse()
