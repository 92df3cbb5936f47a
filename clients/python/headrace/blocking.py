"""The client without `async`: the same names, the same arguments, plain iterators.

A thread of its own runs the loop of an async `Client`; calls of any number of threads meet there.  One BlockingClient
is enough for a process, and better than many: each has a loop, and gRPC prefers one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import threading
import weakref
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar, Unpack

import grpc

from headrace.channel import MIB
from headrace.client import DEFAULT_TARGET, Client
from headrace.inference_calls import Inputs
from headrace.prediction import StreamedPrediction
from headrace.retry import Retry
from headrace.run import TrainingRun
from headrace.spec import SpecKeywords
from headrace.training.v1.training_job_pb2 import TrainingJob
from headrace.training.v1.training_spec_pb2 import TrainingSpec

P = ParamSpec("P")
T = TypeVar("T")
InnerT = TypeVar("InnerT")
InnerT_co = TypeVar("InnerT_co", covariant=True)
_END: Final = object()


class _LoopThread:
    """A loop in a daemon thread, which runs what other threads give it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="headrace-client", daemon=True)
        self._lock = threading.Lock()
        self._is_stopping = False
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work`.  An interrupt (Ctrl-C) cancels it and is raised here; RuntimeError once we are closed."""
        future = self._submit(work)
        if future is None:
            raise RuntimeError("this client is closed; make a new one")
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            if self._is_stopping:
                raise RuntimeError("this client was closed while it waited") from None
            raise
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """Yield what `items` yields; closes it when the reader stops."""
        lock = asyncio.Lock()  # an interrupted step must be over before the generator can be closed
        stepping: asyncio.Task[Any] | None = None

        async def step() -> tuple[T] | None:
            nonlocal stepping
            stepping = asyncio.current_task()
            async with lock:
                try:
                    return (await anext(items),)
                except StopAsyncIteration:
                    return None

        async def close() -> None:
            if stepping is not None and not stepping.cancelling():  # an interrupt came when nobody waited for it yet
                stepping.cancel()
            async with lock:
                await items.aclose()

        try:
            while (item := self.run(step())) is not None:
                yield item[0]
        finally:
            if (future := self._submit(close())) is not None:
                future.result()

    def stop(self, last: Coroutine[Any, Any, None]) -> None:
        """Run `last`, cancel what still runs, and end the thread."""
        if threading.current_thread() is self._thread:  # the garbage collector may call from anywhere
            last.close()
            self._loop.stop()
            return
        finishing = self._submit(_finish(last), is_last=True)
        if finishing is not None:
            finishing.result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _submit(self, work: Coroutine[Any, Any, T], *, is_last: bool = False) -> concurrent.futures.Future[T] | None:
        """Give `work` to the loop; None when it has had its last."""
        with self._lock:  # what is submitted before the last is there to be cancelled by it
            if not self._is_stopping and self._thread.is_alive():
                self._is_stopping = is_last
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        return None


async def _finish(last: Coroutine[Any, Any, None]) -> None:
    await last
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others)
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


class _Blocking(Generic[InnerT_co]):
    """Something async, and the thread where it lives."""

    def __init__(self, inner: InnerT_co, thread: _LoopThread) -> None:
        self._inner = inner
        self._thread = thread


def _waiting(
    method: Callable[Concatenate[InnerT, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[_Blocking[InnerT], P], T]:
    """The method that waits for what `method` does."""

    def call(self: _Blocking[InnerT], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._thread.run(method(self._inner, *args, **kwargs))

    functools.update_wrapper(call, method)
    return call


def _iterating(
    method: Callable[Concatenate[InnerT, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[_Blocking[InnerT], P], Iterator[T]]:
    """The plain iterator over what `method` yields."""

    def call(self: _Blocking[InnerT], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return self._thread.iterate(method(self._inner, *args, **kwargs))

    functools.update_wrapper(call, method)
    return call


class BlockingRun(_Blocking[TrainingRun]):
    """One training job.  Made by `BlockingClient.start_training` and `BlockingClient.training_run`."""

    @property
    def name(self) -> str:
        """`trainingJobs/{job}`."""
        return self._inner.name

    @property
    def job(self) -> TrainingJob:
        """The job as last heard of."""
        return self._inner.job

    refresh = _waiting(TrainingRun.refresh)
    wait = _waiting(TrainingRun.wait)
    cancel = _waiting(TrainingRun.cancel)
    pause = _waiting(TrainingRun.pause)
    resume = _waiting(TrainingRun.resume)
    delete = _waiting(TrainingRun.delete)
    profile = _waiting(TrainingRun.profile)
    download_profile = _waiting(TrainingRun.download_profile)
    follow = _iterating(TrainingRun.follow)
    logs = _iterating(TrainingRun.logs)

    def __repr__(self) -> str:
        return repr(self._inner)


class BlockingClient(_Blocking[Client]):
    """A connection to one server.  See `Client`: names, arguments and errors are the same."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        credentials: grpc.ChannelCredentials | None = None,
        timeout_seconds: float = 30.0,
        max_message_bytes: int = 64 * MIB,
        retry: Retry | None = None,
    ) -> None:
        client = Client(
            target,
            credentials=credentials,
            timeout_seconds=timeout_seconds,
            max_message_bytes=max_message_bytes,
            retry=retry,
        )
        super().__init__(client, _LoopThread())
        self._close = weakref.finalize(self, _hang_up, self._thread, client)  # also when the program ends

    @property
    def target(self) -> str:
        """Where the server is."""
        return self._inner.target

    def start_training(
        self,
        spec: TrainingSpec | None = None,
        *,
        job_id: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str = "",
        validate_only: bool = False,
        timeout: float | None = None,
        **keywords: Unpack[SpecKeywords],
    ) -> BlockingRun:
        """Start a training and return at once; see `Client.start_training`."""
        run = self._thread.run(
            self._inner.start_training(
                spec,
                job_id=job_id,
                labels=labels,
                request_id=request_id,
                validate_only=validate_only,
                timeout=timeout,
                **keywords,
            )
        )
        return BlockingRun(run, self._thread)

    def training_run(self, job: str) -> BlockingRun:
        """The run of a job that somebody started; see `Client.training_run`."""
        return BlockingRun(self._thread.run(self._inner.training_run(job)), self._thread)

    def predict_stream(
        self,
        model: str,
        inputs: Iterable[Inputs],
        *,
        window: int = 32,
        output_names: Sequence[str] = (),
        priority: int = 0,
    ) -> Iterator[StreamedPrediction]:
        """Run a model on many inputs over one stream; see `Client.predict_stream`.  `inputs` may block."""
        answers = self._inner.predict_stream(
            model, _in_thread(inputs), window=window, output_names=output_names, priority=priority
        )
        return self._thread.iterate(answers)

    get_training_job = _waiting(Client.get_training_job)
    list_training_jobs = _waiting(Client.list_training_jobs)
    compare_training_jobs = _waiting(Client.compare_training_jobs)
    list_trainers = _waiting(Client.list_trainers)
    predict = _waiting(Client.predict)
    model_status = _waiting(Client.model_status)
    upload_dataset = _waiting(Client.upload_dataset)
    register_dataset = _waiting(Client.register_dataset)
    get_dataset = _waiting(Client.get_dataset)
    list_datasets = _waiting(Client.list_datasets)
    list_dataset_versions = _waiting(Client.list_dataset_versions)
    delete_dataset = _waiting(Client.delete_dataset)
    get_model = _waiting(Client.get_model)
    list_models = _waiting(Client.list_models)
    get_model_version = _waiting(Client.get_model_version)
    list_model_versions = _waiting(Client.list_model_versions)
    assign_alias = _waiting(Client.assign_alias)
    delete_alias = _waiting(Client.delete_alias)
    update_model = _waiting(Client.update_model)
    get_plan = _waiting(Client.get_plan)
    measure_plan = _waiting(Client.measure_plan)
    set_calibration = _waiting(Client.set_calibration)
    load_model = _waiting(Client.load_model)
    unload_model = _waiting(Client.unload_model)
    register_ensemble = _waiting(Client.register_ensemble)
    upload_model = _waiting(Client.upload_model)
    download_artifact = _waiting(Client.download_artifact)
    health = _waiting(Client.health)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up and end the thread.  Jobs go on; iterators of other threads end.  Harmless when repeated."""
        self._close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target}>"


def _hang_up(thread: _LoopThread, client: Client) -> None:
    thread.stop(client.close())


async def _in_thread(items: Iterable[T]) -> AsyncIterable[T]:
    """What `items` yields, fetched away from the loop."""
    iterator = iter(items)
    while (item := await asyncio.to_thread(next, iterator, _END)) is not _END:
        yield item  # type: ignore[misc]  # it is not the end
