"""An exported model behind HTTP: a real process, real connections, real signals."""

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor

import treadle
from treadle.errors import ConfigError
from treadle.export import Exported, Manifest, TensorSpec, export, load_exported
from treadle.serving import Limits, create_app
from treadle.serving.__main__ import main
from treadle.serving.app import app_of
from treadle.serving.batching import Batcher
from treadle.serving.refusals import Refusal
from treadle.serving.service import Service

FOREVER = "60000"  # milliseconds: a request that waits this long would fail its test
PATIENCE = 60  # seconds


class Lookup(treadle.Module):
    """Of whole numbers, so that an answer is the same in any batch, to the last bit."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.arange(8.0).view(4, 2))
        self.table = torch.nn.Embedding.from_pretrained(torch.arange(20.0).view(10, 2))

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return x @ self.weight + self.table(ids)


def inputs_of(number: int, size: int = 1) -> dict[str, Any]:
    """A request that differs from the others."""
    return {"x": [[number, row, 1, 0.5] for row in range(size)], "ids": [(number + row) % 10 for row in range(size)]}


def answer_of(exported: Exported, inputs: dict[str, Any]) -> list[list[float]]:
    [y] = exported(torch.tensor(inputs["x"], dtype=torch.float32), torch.tensor(inputs["ids"]))
    return y.tolist()


class Served:
    """A server process, and requests to it: each on a connection of its own."""

    def __init__(self, process: subprocess.Popen[str], host: str) -> None:
        self.process, self.host = process, host

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, dict[str, str]]:
        connection = self.send(method, path, body, **headers)
        try:
            answer = connection.getresponse()
            return (
                answer.status,
                json.loads(answer.read()),
                {name.lower(): value for name, value in answer.getheaders()},
            )
        finally:
            connection.close()

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE)
        content = body if isinstance(body, str | None) else json.dumps(body)
        connection.request(method, path, content, {"Content-Type": "application/json", **headers})
        return connection

    def predict(self, inputs: Any) -> tuple[int, Any, dict[str, str]]:
        return self.ask("POST", "/predict", {"inputs": inputs})

    def stats(self) -> dict[str, Any]:
        return self.ask("GET", "/stats")[1]

    def until(self, **wanted: int) -> None:
        """Return when these counts are reached."""
        end = time.monotonic() + PATIENCE
        while {name: (found := self.stats())[name] for name in wanted} != wanted:
            assert time.monotonic() < end, found


@contextmanager
def serving(path: Path, *flags: str) -> Iterator[Served]:
    command = [sys.executable, "-W", "error", "-m", "treadle.serving", str(path), "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"http://([\d.]+:\d+)/", line)
        assert found, line
        assert process.stdout.readline().startswith("ready: Lookup, x float32[batch, 4], ids int64[batch] -> ")
        yield Served(process, found[1])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("served") / "model.pt2"
    export(Lookup(), path, example=(torch.ones(2, 4), torch.ones(2, dtype=torch.int64)))
    return path


@pytest.fixture(scope="module")
def exported(path: Path) -> Exported:
    return load_exported(path)


@pytest.fixture(scope="module")
def server(path: Path) -> Iterator[Served]:
    with serving(path, "--max-batch", "16", "--max-wait-ms", "50", "--max-body-mb", "0.1") as served:
        yield served


@pytest.fixture(scope="module")
def patient(path: Path) -> Iterator[Served]:
    """A server that waits for a full batch of 16, and has places for 4 requests."""
    with serving(path, "--max-batch", "16", "--max-wait-ms", FOREVER, "--max-queue", "4") as served:
        yield served


def output_name(exported: Exported) -> str:
    return exported.manifest.outputs[0].name


class TestManyClientsAtOnce:
    def test_get_what_the_model_says(self, server: Served, exported: Exported) -> None:
        """Each of 64 gets the answer to its own question, and there were fewer forward passes than questions."""
        asked = [inputs_of(number, size=1 + number % 3) for number in range(64)]
        before = server.stats()
        with ThreadPoolExecutor(64) as clients:
            answers = list(clients.map(server.predict, asked))
        after = server.stats()
        assert [status for status, *_ in answers] == [200] * 64
        told = [body["outputs"][output_name(exported)] for _, body, _ in answers]
        assert told == [answer_of(exported, inputs) for inputs in asked]
        assert after["requests"] - before["requests"] == 64
        assert after["computed"] - before["computed"] == 64
        assert after["batches"] - before["batches"] < 64

    def test_do_not_suffer_from_one_bad_request(self, server: Served, exported: Exported) -> None:
        """An index beyond the table is known only to the model: it fails for who asked, and for nobody else."""
        asked = [inputs_of(number) for number in range(12)]
        asked[5] = {**asked[5], "ids": [10]}
        with ThreadPoolExecutor(12) as clients:
            answers = list(clients.map(server.predict, asked))
        assert [status for status, *_ in answers] == [200] * 5 + [500] + [200] * 6
        assert "failed on these inputs: IndexError: index out of range" in answers[5][1]["detail"]
        told = answers[6][1]["outputs"][output_name(exported)]
        assert told == answer_of(exported, asked[6])


class TestALargeRequest:
    def test_is_answered_like_a_small_one(self, server: Served, exported: Exported) -> None:
        """It is read beside the event loop; nobody notices."""
        inputs = inputs_of(4, size=16)
        status, told, _ = server.ask("POST", "/predict", json.dumps({"inputs": inputs}) + " " * 90_000)
        assert status == 200
        assert told["outputs"][output_name(exported)] == answer_of(exported, inputs)


X = [[1, 2, 3, 4]]
TAKES = "expected finite numbers (float32) of shape [batch, 4], batch 1 to 16"


class TestABadRequest:
    @pytest.mark.parametrize(
        "inputs, said",
        [
            ({"x": [[1, 2, 3]], "ids": [1]}, f"input 'x': given shape [1, 3]; {TAKES}"),
            ({"x": [1, 2, 3, 4], "ids": [1]}, f"input 'x': given shape [4]; {TAKES}"),
            ({"x": [X], "ids": [1]}, f"input 'x': given shape [1, 1, 4]; {TAKES}"),
            ({"x": [*X, [1, 2]], "ids": [1, 1]}, f"input 'x': given 2 values at x[1]; {TAKES}"),
            ({"x": X * 17, "ids": [1] * 17}, f"input 'x': given shape [17, 4]; {TAKES}"),
            ({"x": [], "ids": []}, f"input 'x': given shape [0]; {TAKES}"),
            ({"x": 7, "ids": [1]}, f"input 'x': given 7; {TAKES}"),
            ({"x": [[1, 2, "3", 4]], "ids": [1]}, f"input 'x': given \"3\" at x[0][2]; {TAKES}"),
            ({"x": [[1, 2, True, 4]], "ids": [1]}, f"input 'x': given true at x[0][2]; {TAKES}"),
            ({"x": [[1, 2, None, 4]], "ids": [1]}, f"input 'x': given null at x[0][2]; {TAKES}"),
            ({"x": [[1, 2, float("nan"), 4]], "ids": [1]}, f"input 'x': given NaN at x[0][2]; {TAKES}"),
            ({"x": [[1, 2, float("inf"), 4]], "ids": [1]}, f"input 'x': given Infinity at x[0][2]; {TAKES}"),
            ({"x": [[1, 2, 1e300, 4]], "ids": [1]}, f"input 'x': given a number beyond 3.4e+38; {TAKES}"),
            ({"x": X, "ids": [1.5]}, "input 'ids': given 1.5 at ids[0]; expected integers (int64) of shape [batch]"),
            ({"x": X, "ids": [2**63]}, "input 'ids': given 9223372036854775808 at ids[0]; expected integers (int64)"),
            ({"x": X, "ids": [1, 2]}, "input 'ids': given batch 2, but batch 1 for 'x'"),
            ({"x": X}, "input 'ids': given nothing; expected integers (int64) of shape [batch]"),
            ({"x": X, "idss": [1]}, "'idss' is no input of the model: did you mean 'ids'?"),
            ([1], "the body is an object {\"inputs\": {...}} with 'x', 'ids' in it."),
        ],
    )
    def test_is_told_what_it_gave_and_what_was_expected(self, server: Served, inputs: Any, said: str) -> None:
        status, body, _ = server.predict(inputs)
        assert status == 422
        assert body["detail"].startswith(said)

    def test_can_be_read_by_a_program(self, server: Served) -> None:
        body = server.predict({"x": [[1, 2, 3]], "ids": [1]})[1]
        assert (body["input"], body["given"]) == ("x", "shape [1, 3]")
        assert body["expected"].startswith("finite numbers (float32) of shape [batch, 4]")

    @pytest.mark.parametrize("body", ["", "{", "{'inputs': 1}", "[" * 1000])
    def test_is_no_json(self, server: Served, body: str) -> None:
        status, told, _ = server.ask("POST", "/predict", body)
        assert status == 400
        assert told["detail"].startswith("the body is no JSON: ")

    def test_is_not_declared_as_json(self, server: Served) -> None:
        """As curl sends it without -H, or a page in somebody's browser."""
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        status, told, _ = server.ask("POST", "/predict", {"inputs": inputs_of(0)}, **headers)
        assert status == 415
        assert "Content-Type: application/json" in told["detail"]

    def test_is_too_large(self, server: Served) -> None:
        """Refused by its declared length, and counted where it declares none."""
        before = server.stats()["requests"]
        body = "1" * 200_000
        assert server.ask("POST", "/predict", body)[0] == 413
        connection = http.client.HTTPConnection(server.host, timeout=PATIENCE)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/predict", iter([body.encode()] * 2), headers, encode_chunked=True)
        answer = connection.getresponse()
        assert answer.status == 413
        assert "larger than 100000 bytes" in json.loads(answer.read())["detail"]
        connection.close()
        assert server.stats()["requests"] == before


class TestAServerDescribesItself:
    def test_by_the_manifest(self, server: Served, exported: Exported) -> None:
        status, told, _ = server.ask("GET", "/model")
        assert status == 200
        assert told == json.loads(exported.manifest.to_json())

    def test_by_a_schema_whose_example_works(self, server: Served, exported: Exported) -> None:
        """/docs shows the real inputs, and "try it out" gets an answer."""
        described = server.ask("GET", "/openapi.json")[1]
        request = described["components"]["schemas"]["Request"]
        x = request["properties"]["inputs"]["properties"]["x"]
        assert x["items"] == {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4}
        assert (x["minItems"], x["maxItems"]) == (1, 16)
        [example] = request["examples"]
        status, told, _ = server.ask("POST", "/predict", example)
        assert status == 200
        assert told["outputs"][output_name(exported)] == answer_of(exported, example["inputs"])

    def test_by_references_that_lead_somewhere(self, server: Served) -> None:
        described = server.ask("GET", "/openapi.json")[1]
        named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)))
        assert named == set(described["components"]["schemas"])

    def test_as_alive_and_ready(self, server: Served) -> None:
        assert server.ask("GET", "/health")[:2] == (200, {"status": "alive"})
        assert server.ask("GET", "/ready")[:2] == (200, {"status": "ready"})


class TestAServerWhoseRequestsWait:
    def test_refuses_when_its_queue_is_full(self, patient: Served) -> None:
        """503 with the time after which to try again; those who wait lose nothing."""
        waiting = [patient.send("POST", "/predict", {"inputs": inputs_of(number, size=3)}) for number in range(4)]
        patient.until(waiting=4)
        status, told, headers = patient.predict(inputs_of(9))
        assert (status, headers["retry-after"]) == (503, "1")
        assert "queue is full" in told["detail"]
        assert patient.stats()["refused"] == 1
        for connection in waiting:
            connection.close()
        patient.until(waiting=0)

    def test_forgets_a_client_that_went_away(self, patient: Served, exported: Exported) -> None:
        """Its samples take no place in the batch of the others."""
        before = patient.stats()
        leaving = patient.send("POST", "/predict", {"inputs": inputs_of(1, size=15)})
        patient.until(waiting=1)
        leaving.close()
        patient.until(waiting=0, abandoned=before["abandoned"] + 1)
        assert patient.predict(inputs_of(2, size=16))[1]["outputs"][output_name(exported)] == answer_of(
            exported, inputs_of(2, size=16)
        )
        assert patient.stats()["batches"] == before["batches"] + 1


class TestAServerThatIsAskedToStop:
    def test_answers_what_it_has(self, path: Path, exported: Exported) -> None:
        """SIGTERM while eight requests wait for a batch to fill: all are answered, at once, and the process exits with 0."""
        asked = [inputs_of(number) for number in range(8)]
        with serving(path, "--max-batch", "16", "--max-wait-ms", FOREVER) as served:
            connections = [served.send("POST", "/predict", {"inputs": inputs}) for inputs in asked]
            served.until(waiting=8)
            served.process.send_signal(signal.SIGTERM)
            answers = [connection.getresponse() for connection in connections]
            assert [answer.status for answer in answers] == [200] * 8
            told = [json.loads(answer.read())["outputs"][output_name(exported)] for answer in answers]
            assert told == [answer_of(exported, inputs) for inputs in asked]
            assert served.process.wait(PATIENCE) == 0
            for connection in connections:
                connection.close()

    def test_says_so_until_the_last_request_is_answered(self, path: Path, exported: Exported) -> None:
        """A client is still sending when SIGTERM comes: /ready and new requests get 503, /health lives on, that client gets
        its answer, and then the process exits with 0."""
        body = json.dumps({"inputs": inputs_of(1)}).encode()
        with serving(path) as served:
            slow = http.client.HTTPConnection(served.host, timeout=PATIENCE)
            slow.putrequest("POST", "/predict")
            slow.putheader("Content-Type", "application/json")
            slow.putheader("Content-Length", str(len(body)))
            slow.endheaders(body[:5])
            served.until(at_hand=1)
            served.process.send_signal(signal.SIGTERM)
            end = time.monotonic() + PATIENCE
            while (ready := served.ask("GET", "/ready"))[0] == 200:
                assert time.monotonic() < end
            assert ready[:2] == (503, {"detail": "the server is shutting down."})
            assert served.predict(inputs_of(2))[0] == 503
            assert served.ask("GET", "/health")[0] == 200
            slow.send(body[5:])
            answer = slow.getresponse()
            assert json.loads(answer.read())["outputs"][output_name(exported)] == answer_of(exported, inputs_of(1))
            slow.close()
            assert served.process.wait(PATIENCE) == 0

    def test_while_it_computes_loses_nothing(self, path: Path, exported: Exported) -> None:
        """SIGTERM into a stream of requests: each gets its answer, or a refusal that says where things stand, or finds no
        server any more; none is dropped halfway."""
        found: list[tuple[int, Any]] = []
        first = threading.Event()
        with serving(path, "--max-batch", "2", "--max-wait-ms", "0") as served:

            def client(number: int) -> None:
                while True:
                    connection = http.client.HTTPConnection(served.host, timeout=PATIENCE)
                    try:
                        connection.connect()
                    except ConnectionRefusedError:
                        return
                    body = json.dumps({"inputs": inputs_of(number)})
                    try:
                        connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
                        answer = connection.getresponse()
                    except (ConnectionResetError, BrokenPipeError, http.client.RemoteDisconnected):
                        # connected to a socket that was closed before anybody accepted: nothing of it was read
                        assert first.is_set()
                        return
                    found.append((answer.status, json.loads(answer.read())))
                    connection.close()
                    first.set()

            clients = [threading.Thread(target=client, args=(number,)) for number in range(8)]
            for thread in clients:
                thread.start()
            assert first.wait(PATIENCE)
            served.process.send_signal(signal.SIGTERM)
            assert served.process.wait(PATIENCE) == 0
            for thread in clients:
                thread.join(PATIENCE)
        assert {status for status, _ in found} <= {200, 503}
        assert all(told["detail"] == "the server is shutting down." for status, told in found if status == 503)


class TestBeforeTheModelIsLoaded:
    def test_the_process_lives_but_is_not_ready(self, exported: Exported) -> None:
        """/health answers at once; /ready and /predict say 503 until the model has computed its first batches; and again
        when the server stops."""
        loads = threading.Event()

        def load() -> Exported:
            assert loads.wait(PATIENCE)
            return exported

        async def asking() -> list[tuple[int, str]]:
            service = Service(exported.manifest, load, Limits())
            transport = httpx.ASGITransport(app_of(service, lifespan=False))
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:

                async def all_three() -> list[tuple[int, str]]:
                    ask = [client.get("/health"), client.get("/ready")]
                    ask.append(client.post("/predict", json={"inputs": inputs_of(1)}))
                    return [
                        (answer.status_code, answer.json().get("detail", "")) for answer in await asyncio.gather(*ask)
                    ]

                starting = asyncio.create_task(service.start())
                found = await all_three()
                loads.set()
                await starting
                found += await all_three()
                service.stop_admitting()
                found += await all_three()
                await service.close()
            return found

        loading, stopping = (503, "the model is not loaded yet."), (503, "the server is shutting down.")
        alive = (200, "")
        assert asyncio.run(asking()) == [alive, loading, loading, alive, alive, alive, alive, stopping, stopping]


class TestAnAppForOnesOwnServer:
    def test_serves_while_its_lifespan_lasts(self, exported: Exported) -> None:
        app = create_app(exported, limits=Limits(max_wait_ms=0))

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app)
            async with (
                app.router.lifespan_context(app),
                httpx.AsyncClient(transport=transport, base_url="http://here") as client,
            ):
                return await client.post("/predict", json={"inputs": inputs_of(3)})

        assert asyncio.run(ask()).json()["outputs"][output_name(exported)] == answer_of(exported, inputs_of(3))

    def test_is_refused_for_a_model_that_mixes_samples(self) -> None:
        """Requests of strangers share a forward pass."""
        manifest = Manifest.here(
            "Similarity",
            (TensorSpec("x", "float32", ("batch", 4)),),
            (TensorSpec("similarity", "float32", ("batch", "batch")),),
        )
        with pytest.raises(ConfigError, match=r"similarity float32\[batch, batch\] can't be served"):
            create_app(Exported(manifest, lambda inputs: (inputs[0] @ inputs[0].T,)))

    def test_fails_to_start_with_a_model_that_takes_no_such_batch(self) -> None:
        """Found by the warm-up, and not by the first busy hour."""
        spec = TensorSpec("x", "float32", ("batch", 4))

        def at_most_8(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if len(inputs[0]) > 8:
                raise RuntimeError("too many")
            return inputs

        app = create_app(Exported(Manifest.here("Small", (spec,), (spec,)), at_most_8))

        async def start() -> None:
            async with app.router.lifespan_context(app):
                pass

        with pytest.raises(ConfigError, match="fails on a batch of 32, all ones: RuntimeError: too many"):
            asyncio.run(start())

    def test_says_which_output_is_no_number(self) -> None:
        """JSON has none for infinity: that is an error, not a null for a client to stumble over."""
        spec = TensorSpec("x", "float32", ("batch",))
        schema = Service(Manifest.here("Log", (spec,), (spec,)), lambda: pytest.fail("not loaded"), Limits()).schema
        with pytest.raises(Refusal, match="output 'x' is not finite"):
            schema.write((torch.tensor([0.0]).log(),))


@asynccontextmanager
async def batcher(forward: Callable[[Tensor], tuple[Tensor, ...]], **limits: Any) -> AsyncIterator[Batcher]:
    with ThreadPoolExecutor(1) as thread:
        made = Batcher(forward, thread, Limits(**limits))
        running = asyncio.create_task(made.run())
        yield made
        running.cancel()


class Doubling:
    """A forward pass that begins when the test says so, and remembers its batches. Negative numbers make it fail."""

    def __init__(self) -> None:
        self.begun, self.may_go = threading.Event(), threading.Event()
        self.seen: list[list[float]] = []

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        self.seen.append(x.tolist())
        self.begun.set()
        assert self.may_go.wait(PATIENCE)
        if (x < 0).any():
            raise ValueError("negative")
        return (2 * x,)


async def while_busy(batcher: Batcher, model: Doubling, requests: list[list[float]]) -> list[asyncio.Task[Any]]:
    """Requests that arrive, in this order, while the model computes another one (the number 0)."""
    asked = [asyncio.create_task(batcher.compute((torch.tensor([0.0]),)))]
    await asyncio.to_thread(model.begun.wait, PATIENCE)
    asked += [asyncio.create_task(batcher.compute((torch.tensor(values),))) for values in requests]
    while batcher.waiting < len(requests):
        await asyncio.sleep(0)
    return asked


async def answers_to(asked: list[asyncio.Task[Any]]) -> list[Any]:
    found = await asyncio.gather(*asked, return_exceptions=True)
    return [one if isinstance(one, BaseException) else one[0].tolist() for one in found]


class TestRequestsThatArriveDuringAForwardPass:
    def test_share_the_next_ones(self) -> None:
        """As many as fit, first come first served."""
        model = Doubling()

        async def run() -> list[Any]:
            async with batcher(model, max_batch=4, max_wait_ms=0) as made:
                asked = await while_busy(made, model, [[1.0], [2.0], [3.0], [4.0], [5.0, 6.0]])
                model.may_go.set()
                return await answers_to(asked)

        assert asyncio.run(run()) == [[0], [2], [4], [6], [8], [10, 12]]
        assert model.seen == [[0], [1, 2, 3, 4], [5, 6]]

    def test_are_not_overtaken_by_smaller_ones(self) -> None:
        """A large request that no longer fits is the first of the next batch, however many small ones follow."""
        model = Doubling()

        async def run() -> None:
            async with batcher(model, max_batch=4, max_wait_ms=0) as made:
                asked = await while_busy(made, model, [[1.0, 1.0], [2.0, 2.0, 2.0], [3.0], [4.0]])
                model.may_go.set()
                await answers_to(asked)

        asyncio.run(run())
        assert model.seen == [[0], [1, 1], [2, 2, 2, 3], [4]]

    def test_fail_one_by_one(self) -> None:
        """A batch that fails is tried again, once and each request alone: only the one at fault has no answer."""
        model = Doubling()

        async def run() -> tuple[list[Any], Any]:
            async with batcher(model, max_batch=4, max_wait_ms=0) as made:
                asked = await while_busy(made, model, [[1.0], [-1.0], [2.0]])
                model.may_go.set()
                return await answers_to(asked), made.counts

        found, counts = asyncio.run(run())
        assert [found[0], found[1], found[3]] == [[0], [2], [4]]
        assert isinstance(found[2], Refusal)
        assert found[2].status == 500
        assert model.seen == [[0], [1, -1, 2], [1], [-1], [2]]
        assert (counts.failed, counts.batches) == (1, 5)

    def test_leave_when_they_are_cancelled(self) -> None:
        """Before their forward pass they take no part in it; during it, the others get their answers."""
        model = Doubling()

        async def run() -> list[Any]:
            async with batcher(model, max_batch=4, max_wait_ms=0) as made:
                asked = await while_busy(made, model, [[1.0], [2.0], [3.0]])
                asked[0].cancel()
                asked[2].cancel()
                found = await answers_to([asked[0], asked[2]])
                model.may_go.set()
                return [*found, *await answers_to([asked[1], asked[3]])]

        first, second, *others = asyncio.run(run())
        assert isinstance(first, asyncio.CancelledError)
        assert isinstance(second, asyncio.CancelledError)
        assert others == [[2], [6]]
        assert model.seen == [[0], [1, 3]]

    def test_are_told_when_they_are_given_up(self) -> None:
        """A server that may not wait any longer says so, to the one that is computed and to those that wait."""
        model = Doubling()

        async def run() -> list[Any]:
            async with batcher(model, max_batch=4, max_wait_ms=0) as made:
                asked = await while_busy(made, model, [[1.0], [2.0]])
                made.give_up()
                found = await answers_to(asked)
                model.may_go.set()
                return found

        found = asyncio.run(run())
        assert [(type(one), one.status) for one in found] == [(Refusal, 503)] * 3
        assert model.seen == [[0]]


class TestABatch:
    def test_goes_as_soon_as_it_is_full(self) -> None:
        """Nobody waits for company that would not fit."""
        model = Doubling()
        model.may_go.set()

        async def run() -> list[Any]:
            async with batcher(model, max_batch=3, max_wait_ms=1e6) as made:
                asked = [asyncio.create_task(made.compute((torch.tensor([float(value)]),))) for value in range(3)]
                return await asyncio.wait_for(answers_to(asked), PATIENCE)

        assert asyncio.run(run()) == [[0], [2], [4]]
        assert model.seen == [[0, 1, 2]]

    def test_with_outputs_that_are_not_by_sample_fails(self) -> None:
        """Nobody gets a part of somebody else's answer."""

        async def run() -> list[Any]:
            async with batcher(lambda x: (x.sum(),), max_batch=3, max_wait_ms=0) as made:
                return await answers_to([asyncio.create_task(made.compute((torch.tensor([1.0]),)))])

        [found] = asyncio.run(run())
        assert isinstance(found, Refusal)
        assert "an output has shape () for a batch of 1" in found.detail


class TestTheCommand:
    @pytest.mark.parametrize(
        "flags, said",
        [
            (["--max-batch", "0"], "max_batch=0 takes no request."),
            (["--max-wait-ms", "-1"], "max_wait_ms=-1.0 is no such amount."),
            (["--port", "99999"], "port 99999 can't be."),
        ],
    )
    def test_refuses_such_a_setting(
        self, path: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main([str(path), *flags]) == 1
        assert capsys.readouterr().err.startswith(f"error: {said}")

    def test_refuses_a_port_that_is_taken(self, path: Path, server: Served, capsys: pytest.CaptureFixture[str]) -> None:
        host, port = server.host.split(":")
        assert main([str(path), "--host", host, "--port", port]) == 1
        assert capsys.readouterr().err.startswith(f"error: can't listen at {host}, port {port}: ")

    def test_refuses_a_file_that_is_not_there(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([str(tmp_path / "none.pt2")]) == 1
        assert "none.pt2 is not an exported file." in capsys.readouterr().err

    def test_ends_when_the_model_fails_its_warm_up(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """It does not stay around, alive and never ready."""
        # that many samples fit into no memory
        assert main([str(path), "--port", "0", "--max-batch", str(10**15)]) == 1
        assert "the model fails on a batch of" in capsys.readouterr().err


class TestImportingServing:
    def test_loads_no_extra(self) -> None:
        code = "import sys, treadle.serving, treadle.serving.__main__; print(*sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert not set(done.stdout.split()) & {"fastapi", "pydantic", "uvicorn", "torch"}
