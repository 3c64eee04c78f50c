"""The program of every rank:  torchrun --nproc_per_node 2 -m steps.train.worker <directory>/spec.json --attempt 1

It registers as a writer, goes on from the newest complete checkpoint that fits, trains, and leaves the adapter under its
name; the supervisor publishes it. Events, checkpoints, failure records and exit codes are its only words (see `events`,
`checkpoints`, `failure_record`). It starts without torchrun too, as one process.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.errors import CheckpointError, LoraFlowError, StorageError
from steps.library_versions import without_bars
from steps.machine import quiet_threads
from steps.protocol import checkpoints
from steps.protocol.checkpoints import Checkpoint, Writer
from steps.protocol.events import EventWriter
from steps.protocol.failure_class import EXIT_OK, FailureClass
from steps.protocol.failure_record import record_of, write_record
from steps.protocol.handover import HeldOutLoss
from steps.protocol.records import digest_file
from steps.protocol.rundir import AttemptDir, TrainDir, storage_errors, sync_tree, write_json
from steps.train.loop.callbacks import Callbacks
from steps.train.loop.ranks import Ranks
from steps.train.spec import TrainSpec, read_spec, require_data

if TYPE_CHECKING:
    from steps.train.loop.backend import Backend

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class StopRequest:
    """Set by a signal, read after every step."""

    stop: bool = False


@dataclass(slots=True)
class Worker:
    """One rank of one attempt."""

    spec: TrainSpec
    attempt: int
    ranks: Ranks
    request: StopRequest = field(default_factory=StopRequest)
    callbacks: Callbacks | None = None
    passed_over: list[str] = field(default_factory=list)
    """Why newer checkpoints than the one it begins with were not used; known to rank 0."""

    @property
    def folder(self) -> Path:
        """The attempt's directory."""
        return self.spec.place.attempt(self.attempt)

    def run(self) -> int:
        """Train; the exit code of a worker that did what it was asked.

        Raises:
            Exception: whatever went wrong; `main` records it.
        """
        begun, begun_cpu = time.monotonic(), time.process_time()
        gc.disable()  # looking for garbage takes a fifth of the time in which torch and transformers are imported
        try:
            backend, writer, events = self._load()
        finally:
            gc.freeze()  # all this stays: collections to come need not walk through it
            gc.enable()
        assert self.callbacks is not None  # made in `_load`
        done = self.callbacks.step
        if done < self.spec.steps and not self.callbacks.progress.ended:
            self.callbacks.start_clock()
            backend.train(done=done, listener=self.callbacks)
        if self.callbacks.stopped:
            return FailureClass.PREEMPTED.exit_code
        if self.spec.graphs_only:  # `neuron_precompile` compiles what was collected, and has the last word
            return EXIT_OK
        result = self._export(backend, writer)
        if events:
            spent = {"seconds": time.monotonic() - begun, "processor_s": time.process_time() - begun_cpu}
            told: dict[str, Any] = {} if backend.shapes is None else {"shapes": backend.shapes}
            told |= {name: round(seconds, 4) for name, seconds in spent.items()}
            events.emit("finished", self.callbacks.step, **result, **told)
        return EXIT_OK

    def _load(self) -> tuple[Backend, Writer, EventWriter | None]:
        """Meet the other ranks, find out where to begin, bring the model there; rank 0 tells."""
        if self.spec.backend == "neuron":
            from steps.train.neuron.ranks import NeuronRanks

            self.ranks = NeuronRanks.of(
                self.ranks,
                tensor_parallel=self.spec.tensor_parallel,
                pipeline_parallel=self.spec.pipeline_parallel,
            )
        self.ranks.connect()
        backend = self._backend()
        writer, checkpoint = self._begin(backend)
        events = (
            EventWriter(self.spec.place.events(self.attempt), attempt=self.attempt) if self.ranks.rank == 0 else None
        )
        done = checkpoint.step if checkpoint else 0
        self.callbacks = Callbacks(self.spec, backend, events=events, writer=writer)
        if checkpoint:
            self.callbacks.resume(checkpoint.path, done)
        if events:
            events.emit("started", done, **self._introduction(backend, writer, checkpoint))
        loading = time.monotonic()
        size = backend.load(checkpoint.path if checkpoint else None)
        if events:
            seconds = round(time.monotonic() - loading, 4)
            events.emit("model_loaded", done, seconds=seconds, parameters=size.parameters, trainable=size.trainable)
        return backend, writer, events

    def _backend(self) -> Backend:
        from steps.protocol.prepared import PreparedRows
        from steps.train.loop.feed import Feed

        prepared = PreparedRows.open(Path(self.spec.prepared_path))
        if self.spec.backend == "neuron":
            from steps.train.neuron.backend import NeuronBackend

            return NeuronBackend(self.spec, self.ranks, prepared, stop_asked=lambda: self.request.stop)
        from steps.train.pytorch.backend import TorchBackend

        feed = Feed(prepared, self.spec, self.ranks)
        return TorchBackend(self.spec, self.ranks, feed, stop_asked=lambda: self.request.stop)

    def _begin(self, backend: Backend) -> tuple[Writer, Checkpoint | None]:
        """Rank 0 registers and chooses, the others follow; its refusal is theirs too."""
        answer: tuple[Writer, Checkpoint | None] | LoraFlowError | None = None
        if self.ranks.rank == 0:
            try:
                answer = self._register_and_choose(backend)
            except LoraFlowError as error:
                self.ranks.share(error)
                raise
        answer = self.ranks.share(answer)
        if isinstance(answer, tuple):
            return answer
        raise answer or CheckpointError("rank 0 said neither where to begin nor why not")

    def _register_and_choose(self, backend: Backend) -> tuple[Writer, Checkpoint | None]:
        place = self.spec.place
        require_data(self.spec)
        with storage_errors(f"registering in {place.writers}"):
            writer = checkpoints.register_writer(place.writers, self.attempt)
        misfits: list[str] = []

        def fits(layout: dict[str, Any]) -> str | None:
            reason = backend.fits(layout)
            misfits.extend([reason] if reason else [])
            return reason

        choice = checkpoints.choose(place.checkpoints, identity=self.spec.identity, fits=fits)
        for rejected in choice.rejected:
            logger.warning("not used: %s", rejected.reason)
        checkpoints.set_aside_damaged(choice.rejected)
        self.passed_over = [rejected.reason for rejected in choice.rejected]
        if misfits and not choice.checkpoint:
            raise CheckpointError(
                f"no checkpoint in {place.checkpoints} can be continued here: {misfits[0]}; run it as it was saved, "
                "or move the checkpoints away to train from the beginning"
            )
        if choice.checkpoint:
            logger.info("going on from step %d (%s)", choice.checkpoint.step, choice.checkpoint.path.name)
        return writer, choice.checkpoint

    def _introduction(self, backend: Backend, writer: Writer, checkpoint: Checkpoint | None) -> dict[str, Any]:
        return {
            "of": self.spec.steps,
            "world": self.ranks.world,
            "processes": self.ranks.local_world,
            "node": platform.node(),
            "pid": os.getpid(),
            "claim": str(writer),
            "resumed_from": checkpoint.path.name if checkpoint else None,
            "passed_over": self.passed_over,
            "layout": backend.layout,
            "layout_changed": bool(checkpoint and checkpoint.layout != backend.layout),
        }

    def _export(self, backend: Backend, writer: Writer) -> dict[str, Any]:
        """Write the final adapter under our writer's name; what the supervisor has to know to publish it."""
        assert self.callbacks is not None  # made in `run`
        place, progress = self.spec.place, self.callbacks.progress
        best = self.spec.keep == "best" and progress.best_loss is not None
        folder = place.writers / str(writer) / "result"
        if self.ranks.rank == 0:
            with storage_errors(f"writing {folder}"):
                folder.mkdir()
        backend.export(folder, best=best)
        expected = HeldOutLoss.from_dict(progress.best_head if best else progress.last_head)
        if expected:
            self.callbacks.check_begins()
            backend.check_export(folder, expected)
        if self.ranks.rank:
            return {}
        step = progress.best_step if best else self.callbacks.step
        loss = progress.best_loss if best else progress.last_loss
        write_json(
            folder / "training.json",
            {
                "step": step,
                "validation_loss": loss,
                "head": expected.to_dict() if expected else None,
                "spec": self.spec.to_dict(),
            },
        )
        with storage_errors(f"writing {folder}"):
            sync_tree(folder)
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": digest_file(file)} for file in sorted(folder.iterdir())
        }
        return {"result": str(folder.relative_to(place.path)), "files": files, "result_step": step}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one rank; returns its exit code, never raises."""
    parser = argparse.ArgumentParser(prog="python -m steps.train.worker", description="Train as one rank.")
    parser.add_argument("spec", type=Path, help="spec.json in the training's directory")
    parser.add_argument("--attempt", type=int, required=True, help="number of this attempt, from 1")
    given = parser.parse_args(argv)
    ranks = Ranks.from_environment(os.environ)
    logging.basicConfig(
        level=logging.INFO if ranks.rank == 0 else logging.WARNING,
        format=f"%(asctime)s rank {ranks.rank} %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    # Where the supervisor looks, whatever fails: the training's directory is the spec's own.
    folder = TrainDir(given.spec.resolve().parent).attempt(given.attempt)
    worker: Worker | None = None
    try:
        spec = read_spec(given.spec)
        _prepare_process(spec, ranks)
        worker = Worker(spec, given.attempt, ranks)
        folder = _listen(worker)
        return worker.run()
    except BaseException as error:
        step = worker.callbacks.step if worker and worker.callbacks else 0
        record = record_of(error, rank=ranks.rank, node=platform.node(), step=step, time_s=time.time())
        logger.error("%s: %s", record.exception, record.message, exc_info=not isinstance(error, LoraFlowError))
        try:
            write_record(folder, record)
        except (StorageError, OSError) as second:  # the exit code still tells the class
            logger.error("no failure record: %s", second)
        return record.exit_code


def _prepare_process(spec: TrainSpec, ranks: Ranks) -> None:
    """What has to be in the environment before torch and transformers are imported."""
    threads = str(ranks.threads(spec.threads_per_process))
    os.environ.update(
        OMP_NUM_THREADS=threads,
        MKL_NUM_THREADS=threads,
        TOKENIZERS_PARALLELISM="false",
        TRANSFORMERS_VERBOSITY=os.environ.get("TRANSFORMERS_VERBOSITY", "error"),
        HF_HUB_OFFLINE="1",  # the base model is local; a hub out of reach must not cost a minute
    )
    if spec.backend != "neuron":  # where torch_xla is installed, transformers and accelerate would take its path
        os.environ["USE_TORCH_XLA"] = "0"
    quiet_threads(os.environ)
    without_bars(os.environ)


def _listen(worker: Worker) -> Path:
    """Signals: SIGTERM and SIGINT ask for a stop after this step, SIGUSR1 writes all stacks beside the log."""

    def ask(number: int, frame: object) -> None:
        worker.request.stop = True

    with storage_errors(f"writing {worker.folder}"):
        worker.folder.mkdir(parents=True, exist_ok=True)
        stacks = AttemptDir(worker.folder).stack(worker.ranks.rank).open("w")
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    return worker.folder


if __name__ == "__main__":
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody listens any more
            stream.flush()
    os._exit(code)  # no exit handler, and no thread of a communication library, may hold the process back
