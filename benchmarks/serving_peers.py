"""Servers beside which benchmarks/serving.py puts `rlx-ray serve`, behind the same proxy.

    python serving_peers.py onnxruntime PORT MODEL.onnx TOKENIZER.json
    python serving_peers.py prototype PORT CONFIG MODEL

`onnxruntime` is what a good engineer writes by hand: one FastAPI deployment on Ray Serve,
`@serve.batch` of 16, ONNX Runtime on two threads, padding to the longest of a batch. `prototype` is
the least that puts this project's engine behind HTTP: one deployment, no validation, no deadlines,
no limits; what has gathered while a pass ran is the next batch. Prints READY once it answers.
"""

import asyncio
import base64
import sys
import threading

import numpy as np
import ray
from fastapi import FastAPI
from pydantic import BaseModel
from ray import serve
from ray.serve.config import HTTPOptions

api = FastAPI()


def encode(vector: np.ndarray, encoding: str) -> object:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


def answer(model: str, vectors: list[object]) -> dict[str, object]:
    rows = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
    return {"object": "list", "model": model, "data": rows}


class Body(BaseModel):
    """A request of OpenAI's embeddings API."""

    model: str = ""
    input: str | list[str]
    encoding_format: str = "float"


@serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
@serve.ingress(api)
class OnnxRuntime:
    """MiniLM by ONNX Runtime."""

    def __init__(self, model: str, tokenizer: str) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        providers = ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(model, options, providers=providers)
        self._tokenizer = Tokenizer.from_file(tokenizer)
        self._tokenizer.enable_truncation(256)
        self._tokenizer.enable_padding()

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.002)
    async def run(self, texts: list[str]) -> list[np.ndarray]:
        return await asyncio.to_thread(self._run, texts)

    def _run(self, texts: list[str]) -> list[np.ndarray]:
        encoded = self._tokenizer.encode_batch(texts)
        ids = np.array([one.ids for one in encoded], np.int64)
        mask = np.array([one.attention_mask for one in encoded], np.int64)
        return list(self._session.run(None, {"input_ids": ids, "attention_mask": mask})[0])

    @api.post("/v1/embeddings")
    async def embeddings(self, body: Body):
        texts = [body.input] if isinstance(body.input, str) else body.input
        vectors = await asyncio.gather(*(self.run(text) for text in texts))
        return answer(body.model, [encode(v, body.encoding_format) for v in vectors])


class Prototype:
    """This project's engine in the HTTP process, and nothing else."""

    def __init__(self, config: str, model: str) -> None:
        import rlx_ray

        self._model = rlx_ray.load(config, model)
        self._model.embed(["ready"])
        self._waiting: list[tuple[str, asyncio.Future]] = []
        self._running = False

    def __serve_build_asgi_app__(self):
        from starlette.applications import Starlette
        from starlette.routing import Route

        return Starlette(routes=[Route("/v1/embeddings", self._embeddings, methods=["POST"])])

    async def _embeddings(self, request):
        import orjson
        from starlette.responses import Response

        body = orjson.loads(await request.body())
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        vectors = await asyncio.gather(*(self._one(text) for text in texts))
        found = answer(body["model"], [encode(v, "base64") for v in vectors])
        return Response(orjson.dumps(found), media_type="application/json")

    async def _one(self, text: str) -> np.ndarray:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((text, future))
        if not self._running:
            self._running = True
            self._task = asyncio.ensure_future(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:32], self._waiting[32:]
            texts = [text for text, _ in batch]
            vectors = (await asyncio.to_thread(self._model.embed, texts)).vectors
            for (_, future), vector in zip(batch, vectors, strict=True):
                future.set_result(vector)
        self._running = False


def main() -> None:
    kind, port, *rest = sys.argv[1:]
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=100 << 20,
    )
    options = HTTPOptions(host="127.0.0.1", port=int(port))
    serve.start(proxy_location="HeadOnly", http_options=options)
    if kind == "onnxruntime":
        app = OnnxRuntime.bind(*rest)
    else:
        how = {"max_ongoing_requests": 512, "ray_actor_options": {"num_cpus": 0}}
        app = serve.deployment(**how)(serve.ingress()(Prototype)).bind(*rest)
    serve.run(app, route_prefix="/")
    print("READY", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
