"""What the server counts, in Prometheus' text form."""

from collections import Counter, defaultdict
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ts_lightning.serve.line import Question

PREFIX = "ts_lightning_"
SUMS = ("questions", "question_wait_seconds", "question_answer_seconds", "prompt_tokens", "generation_tokens")


class Metrics:
    """Requests by path and status; of questions that have ended, their tokens and seconds."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.sums: dict[str, float] = defaultdict(float)

    def done(self, question: Question) -> None:
        """A question has ended."""
        self.sums["questions"] += 1
        if question.begun is not None:
            came, begun, ended = question.times
            self.sums["question_wait_seconds"] += begun - came
            self.sums["question_answer_seconds"] += ended - begun
            self.sums["prompt_tokens"] += len(question.begun.row["input_ids"])
            self.sums["generation_tokens"] += len(question.begun.writing.tokens)

    def text(self, waiting: int, running: int) -> str:
        """All of it; `waiting` and `running` are questions now."""
        lines = [f"# TYPE {PREFIX}requests_total counter"]
        for (path, status), number in sorted(self.requests.items()):
            lines.append(f'{PREFIX}requests_total{{path="{path}",status="{status}"}} {number}')
        for name in SUMS:
            lines += [f"# TYPE {PREFIX}{name}_total counter", f"{PREFIX}{name}_total {self.sums[name]:.10g}"]
        for name, value in (("questions_waiting", waiting), ("questions_running", running)):
            lines += [f"# TYPE {PREFIX}{name} gauge", f"{PREFIX}{name} {value}"]
        return "\n".join(lines) + "\n"


class Counted:
    """Counts the answers of an application; paths that it does not know count as one."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self.paths else "other"
                self.metrics.requests[path, message["status"]] += 1
            await send(message)

        await self.app(scope, receive, counted if scope["type"] == "http" else send)
