"""Time a model in a process that reads texts when asked; `benchmark` asks several in turn.

`python -m compressor.evaluation.timing` is that process: a line of JSON on its standard input
is a request, a line on its standard output the answer. It ends when its input does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import chain, cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

from compressor.core.console import Console
from compressor.core.errors import StageError
from compressor.core.processes import child_environment, end_with_parent
from compressor.core.progress import Progress
from compressor.evaluation.resources import Peak

if TYPE_CHECKING:
    from compressor.backends.formats import TextSettings
    from compressor.models.checkpoint import Checkpoint


def of_length(sources: Sequence[Sequence[int]], tokens: int, start: int = 0) -> list[int]:
    """Make `tokens` ids of `sources`, from one on and around again, ended as the last one is.

    A source's own end, its last token, is left out.
    """
    end = sources[-1][-1]
    bare = [source[:-1] if source[-1] == end else source for source in sources]
    if not any(bare):
        raise StageError("the texts have no tokens to make longer ones of")
    around = chain.from_iterable(cycle([*bare[start % len(bare) :], *bare[: start % len(bare)]]))
    return [*islice(around, tokens - 1), end]


class Reader:
    """A model in a process of its own, seen from the process that asks."""

    def __init__(
        self, folder: Path, texts: Sequence[str], about: TextSettings, *, threads: int, log: Path
    ) -> None:
        """Start loading the model of an artifact's `folder`; the first answer tells of it.

        `about` says how it reads `texts`; `log` is where what the process prints goes.
        """
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "compressor.evaluation.timing"],
                env=child_environment(threads),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
            )
        start = {"folder": str(folder), "threads": threads, "texts": list(texts)}
        self._send_request({**start, "about": about.model_dump(mode="json")})

    def _send_request(self, request: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._explain_end()

    def read_answer(self) -> dict[str, Any]:
        """Read the next answer. Raises StageError where the process has ended instead."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._explain_end()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _explain_end(self) -> NoReturn:
        code = self._process.wait()
        last = "\n".join(self._log.read_text(errors="replace").strip().splitlines()[-6:])
        raise StageError(f"the timed process ended with code {code}:\n{last}")

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        self._send_request(request)
        return self.read_answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


class _Session:
    """The model that the process has loaded, and what it answers to requests."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        import psutil

        from compressor.backends.base import CLASSIFIERS
        from compressor.backends.formats import TextSettings
        from compressor.backends.open import open_artifact
        from compressor.data.examples import tokenize_sources

        before, begun = psutil.Process().memory_info().rss, time.perf_counter()
        self.model = open_artifact(Path(start["folder"]), threads=start["threads"])
        self.load_seconds = time.perf_counter() - begun
        if self.model.tokenizer is None:
            raise StageError("the model has no tokenizer; set model.tokenizer")
        about = TextSettings.model_validate(start["about"])
        self.labelled = about.head in CLASSIFIERS
        continues = about.head == "causal_lm"
        first = tokenize_sources(
            start["texts"][:1], self.model.tokenizer, about, continues=continues
        )[:]
        self._read_batch(first, {"max_length": 2, "min_length": 0})
        self.resident = psutil.Process().memory_info().rss - before
        self.sources = tokenize_sources(
            start["texts"], self.model.tokenizer, about, continues=continues
        )
        # None where the model is not one that `finetune` would take.
        self.trained: Checkpoint | None = getattr(self.model, "checkpoint", None)
        if self.trained is not None and self.trained.quantization is not None:
            self.trained = None

    def describe(self) -> dict[str, Any]:
        return {
            "load_seconds": self.load_seconds,
            "resident_bytes": self.resident,
            "backend": self.model.backend,
            "device": self.model.device,
            "trains": self.trained is not None,
        }

    def _read_batch(self, batch: list[list[int]], limits: Mapping[str, int]) -> int:
        """Read a batch; return how many tokens were written."""
        if self.labelled:
            self.model.logits(batch)
            return 0
        limit = limits["max_length"]
        swept = self.model.generate_each_limit(
            batch, max_lengths=[limit], min_length=limits["min_length"]
        )
        return swept[limit].generated

    def read(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Time one batch: rows from `start` on, of `input_tokens` tokens where that is given."""
        start, size, tokens = request["start"], request["batch_size"], request["input_tokens"]
        places = range(start, start + size)
        if tokens is None:
            batch = [self.sources[place % len(self.sources)] for place in places]
        else:
            batch = [of_length(self.sources, tokens, place) for place in places]
        begun = time.perf_counter()
        written = self._read_batch(batch, request)
        seconds = time.perf_counter() - begun
        return {"seconds": seconds, "tokens": written, "read": sum(map(len, batch))}

    def begin_peak(self, _: Mapping[str, Any]) -> dict[str, Any]:
        self.peak = Peak(self.model.device if self.model.backend == "torch" else "cpu")
        return {}

    def end_peak(self, _: Mapping[str, Any]) -> dict[str, Any]:
        # What another library has on a GPU, torch does not know.
        known = self.model.backend == "torch" or self.model.device == "cpu"
        return {"bytes": self.peak.bytes() if known else None}

    def train(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Time a step with one row of `tokens` tokens and `target_tokens` to learn.

        It goes through the loop that trains, at a learning rate that leaves the weights alone.
        """
        from compressor.data.examples import Examples
        from compressor.training.hyperparameters import Hyperparameters
        from compressor.training.loop import Training
        from compressor.training.losses import LabelLoss

        assert self.trained is not None, "others are not asked"
        model, device = self.trained.model, self.trained.model.device
        lengths = request["tokens"], request["target_tokens"]
        source, target = (of_length(self.sources, length) for length in lengths)
        peak = Peak(str(device))
        history = Training(
            loss=LabelLoss(model),
            model=model,
            train=Examples([source], [target]),
            validation=None,
            settings=Hyperparameters(
                batch_size=1,
                max_steps=1,
                learning_rate=1e-30,
                gradient_checkpointing=request["gradient_checkpointing"],
                checkpoint_seconds=1e9,
            ),
            masks={},
            pad_id=self.trained.pad_id,
            seed=0,
            resume=Path(request["resume"]),
            progress=Progress(Console(quiet=True), quiet=True),
        ).run()
        measured = {"seconds": history.seconds, "peak_bytes": peak.bytes()}
        model.zero_grad()
        model.to(device)
        return measured


def main() -> None:
    """Answer requests until there are no more."""
    end_with_parent()  # its input ends too, but is not looked at while a batch is read
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer

    def say(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    session = _Session(json.loads(sys.stdin.readline()))
    say(session.describe())
    for line in sys.stdin:
        request = json.loads(line)
        say(getattr(session, request["do"])(request))


if __name__ == "__main__":
    try:
        main()
    except StageError as error:
        sys.exit(str(error))
