"""A synthetic but realistic run directory, for tests that read one."""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

OPENED = 1_790_000_000.0
TASKS_OF_FAMILY = {
    "perlmutter": [f"name_conversion-{pair}" for pair in ("i2f", "i2s", "s2f", "s2i")],
    "polaris": [f"property_prediction-{p}" for p in ("esol", "lipo", "bbbp", "clintox", "hiv", "sider")],
    "aurora": ["forward_synthesis", "retrosynthesis"],
    "frontier": ["molecule_captioning", "molecule_generation"],
}
MODEL = {"full": 269_030_016, "adapter": 4_884_480}
SAMPLES = {"perlmutter": 3360, "polaris": 1440, "aurora": 3840, "frontier": 2560}
SPEED = {"perlmutter": 3.2, "polaris": 1.4, "aurora": 4.4, "frontier": 2.2}  # samples per second


TRAIN_S, LOAD_S, LOST_S = 3000.0, 60.0, 40.0  # of a batch site: training, loading, cost of a lost block


@dataclass
class BatchSites:
    """Blocks of a campaign's batch sites: wait, run time and final state of each, in order.

    Attributes:
        nodes: nodes per block of each batch site.
        plan: site -> (wait, longest run, final state) of its blocks; later blocks wait 600 s and run without limit.
    """

    nodes: dict[str, int]
    plan: dict[str, list[tuple[float, float, str]]] = field(default_factory=dict)
    running: dict[str, tuple[str, float, float, str]] = field(default_factory=dict)  # job, start, end, final state
    ready_s: dict[str, float] = field(default_factory=dict)  # when a site may submit again
    last_job: int = 4700

    def block_for(self, run: SyntheticRun, site: str, now: float) -> tuple[float, float, str]:
        """Return start, end and final state of the site's block; submit one if there is none."""
        if site not in self.running:
            plan = self.plan.get(site) or [(600.0, 1e9, "cancelled")]
            wait_s, run_s, final_state = plan.pop(0)
            self.last_job += 1
            job, start = str(self.last_job), now + wait_s
            keys = {"site": site, "job_id": job}
            run.event(
                "block_submitted",
                now + 2,
                **keys,
                block="0",
                queue="regular",
                nodes=self.nodes[site],
                walltime_s=14_400,
            )
            run.event("block_started", start + 5, **keys, started=start, wait_s=wait_s)
            self.running[site] = job, start, start + run_s, final_state
        return self.running[site][1:]

    def end(self, run: SyntheticRun, site: str, time: float, state: str) -> None:
        job, start, _, _ = self.running.pop(site)
        run.event("block_ended", time + 0.5, site=site, job_id=job, state=state, reason="", started=start, ended=time)


@dataclass
class SyntheticRun:
    """A campaign step by step; the methods advance one clock and write the records of the engine."""

    directory: Path
    tasks: dict[str, list[str]]
    rounds: int = 8
    adapter: bool = True
    seed: int = 7
    time: float = OPENED
    events: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    blocks: BatchSites | None = None

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    @property
    def update_nbytes(self) -> int:
        return MODEL["adapter"] if self.adapter else MODEL["full"]

    def event(self, event: str, time: float | None = None, **fields: Any) -> None:
        stamp = self.time if time is None else time
        self.events.append({"time": stamp, "event": event, **fields})

    def task(
        self, app: str, round: int, site: str, submitted: float, started: float, ended: float, **result: Any
    ) -> None:
        times = {"submitted": submitted, "started": started, "ended": ended}
        self.event("task_done", ended, app=app, round=round, site=site, **times, result=result)

    def open(self) -> None:
        self.event("campaign_opened", name=self.directory.name)
        self.event("driver_started", pid=4711, host="login-01", resumed=False)
        t = self.time
        self.task(
            "prepare",
            0,
            "server",
            t,
            t + 1,
            t + 31,
            parameters=134_515_008,
            trainable=2_442_240,
            full_nbytes=MODEL["full"],
        )
        for site in self.tasks:
            self.task("enrol", 0, site, t, t + 31, t + 35)
        self.time = t + 60

    def site_round(self, number: int, site: str) -> float:
        """Write one round of one site; return the time at which its update is back."""
        if self.blocks and site in self.blocks.nodes:
            return self.batch_round(number, site, self.blocks)
        begun = self.time
        sent = begun + self.chance.uniform(4, 15)
        queued = self.chance.expovariate(1 / 600) if number > 1 else self.chance.uniform(600, 2400)
        started = sent + queued
        samples = SAMPLES.get(site, 1200)
        train_s = samples / SPEED.get(site, 2.0) * self.chance.uniform(0.95, 1.05)
        trained = started + train_s
        back = trained + self.chance.uniform(5, 20)
        artifact = {"sha256": f"{number:02d}{site}", "nbytes": self.update_nbytes, "kind": "adapter"}
        move = {"artifact": artifact, "nbytes_moved": self.update_nbytes}
        self.task("stage_out", number, site, begun, begun + 1, sent, **move)
        self.task(
            "local_train",
            number,
            site,
            begun,
            started,
            trained,
            steps_done=30,
            steps_asked=30,
            attempts=1,
            samples=samples,
            tokens=samples * 70,
            train_s=train_s - 20,
            tokens_per_s=samples * 70 / train_s,
            loss_first=1.2,
            loss_last=0.8,
            reused=False,
        )
        self.task("stage_in", number, site, trained, trained + 1, back, **move)
        return back

    def batch_round(self, number: int, site: str, blocks: BatchSites) -> float:
        """Write one round of a batch site, whose training runs in as many blocks as it needs."""
        sent = self.time + 10
        self.task("stage_out", number, site, self.time, self.time + 1, sent, nbytes_moved=self.update_nbytes)
        left_s, now, attempts = TRAIN_S, max(sent, blocks.ready_s.get(site, 0.0)), 1
        while True:
            start, end, final_state = blocks.block_for(self, site, now)
            started = max(now, start) + LOAD_S
            if started + left_s <= end:
                break
            left_s -= end - started - LOST_S
            blocks.end(self, site, end, final_state)
            now, attempts = end, attempts + 1
        trained = started + left_s
        self.task(
            "local_train",
            number,
            site,
            self.time,
            started,
            trained,
            steps_done=30,
            steps_asked=30,
            attempts=attempts,
            samples=1200,
            tokens=84_000,
            train_s=TRAIN_S,
            loss_first=1.2,
            loss_last=0.8,
        )
        self.task("stage_in", number, site, trained, trained + 1, trained + 10, nbytes_moved=self.update_nbytes)
        return trained + 10

    def round(self, number: int, refused: tuple[str, ...] = ()) -> None:
        """Write one synchronous round, in which the updates of some sites are refused."""
        self.time = max(self.site_round(number, site) for site in self.tasks) + 1
        for site in refused:
            self.event("update_refused", site=site, round=number, reason="norm 812.4 > bound <10>")
        kept = [site for site in self.tasks if site not in refused]
        self.task("aggregate", number, "server", self.time, self.time, self.time + 6)
        self.time += 6
        self.event("aggregated", version=number, weights={site: 1 / len(kept) for site in kept})
        self.evaluate(number)

    def evaluate(self, number: int) -> None:
        self.task("evaluate", number, "evaluator", self.time, self.time + 1, self.time + 80)
        self.time += 80
        for model in ["global", *(self.tasks if number else [])]:
            self.rows += self.scores(number, model)

    def scores(self, number: int, model: str) -> list[dict[str, Any]]:
        """Return losses that fall to a floor per task: lower for an owner on some tasks, higher for other sites."""
        found = []
        all_tasks = [task for owned in self.tasks.values() for task in owned]
        for index, task in enumerate(dict.fromkeys(all_tasks)):
            floor = 0.15 + 0.05 * (index % 7)
            start = floor + 0.9 + 0.12 * (index % 5)
            owner = model != "global" and task in self.tasks[model]
            offset = 0.0 if model == "global" else (-0.03 if index % 2 else 0.04) if owner else 0.3
            loss = floor + (start - floor) * 0.55**number + offset * (1 if number else 0)
            loss += 0.01 * self.chance.uniform(-1, 1) if number else 0.0
            found.append(
                {"round": number, "model": model, "task": task, "loss": round(loss, 6)}
                | {"samples": 100, "tokens": 2100, "artifact": f"{number:02d}{model}"}
            )
        return found

    def finish(self) -> None:
        self.task("save_model", self.rounds, "server", self.time, self.time, self.time + 10)
        self.time += 10
        for site in [*self.blocks.running] if self.blocks else []:
            self.blocks.end(self, site, self.time, "cancelled")  # type: ignore[union-attr]
        self.time += 1
        self.event("campaign_finished", rounds=self.rounds, seconds=self.time - OPENED)
        self.event("driver_stopped", reason="finished")

    def resume(self, gap_s: float) -> None:
        """Start another driver after a pause; the first was killed."""
        self.time += gap_s
        self.event("driver_started", pid=4712, host="login-02", resumed=True)

    def campaign(self) -> dict[str, Any]:
        return {
            "name": self.directory.name,
            "seed": 17,
            "rounds": self.rounds,
            "model": {
                "source": "models/SmolLM2-135M-Instruct",
                "dtype": "bfloat16",
                "adapter": {"method": "lora", "rank": 8, "alpha": 16} if self.adapter else None,
            },
            "data": {"source": "smolinstruct", "split": "by_family"},
            "strategy": {"name": "fedavg", "weights": "equal"},
            "training": {"steps": 30, "learning_rate": 1e-5, "optimizer": "adamw"},
            "sites": {site: {"config": site, "tasks": tasks} for site, tasks in self.tasks.items()},
        }

    def write(self) -> Path:
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "campaign.yaml").write_text(yaml.safe_dump(self.campaign(), sort_keys=False))
        environment = {"python": "3.11.7", "host": "login-01", "git_commit": "0123abc", "torch": "2.13.0"}
        (self.directory / "environment.json").write_text(json.dumps(environment))
        ordered = sorted(self.events, key=lambda event: event["time"])
        lines = [json.dumps({"seq": seq, **event}) + "\n" for seq, event in enumerate(ordered, start=1)]
        (self.directory / "journal.jsonl").write_text("".join(lines))
        with (self.directory / "metrics.csv").open("w", newline="") as stream:
            columns = ["round", "model", "task", "loss", "samples", "tokens", "artifact"]
            writer = csv.DictWriter(stream, fieldnames=columns)
            writer.writeheader()
            writer.writerows(self.rows)
        return self.directory


def start_run(directory: Path, sites: int = 4, tasks: int | None = None, **options: Any) -> SyntheticRun:
    """Return an open campaign that has scored the untrained model; from the fifth, sites have synthetic names."""
    names = [*TASKS_OF_FAMILY, *(f"cluster-{n:02d}" for n in range(5, sites + 1))][:sites]
    owned = {name: TASKS_OF_FAMILY.get(name, [f"task_of-{name}"]) for name in names}
    if tasks is not None:
        pool = [task for group in owned.values() for task in group][:tasks]
        owned = {name: [t for t in group if t in pool] or pool for name, group in owned.items()}
    run = SyntheticRun(directory, owned, **options)
    run.open()
    run.evaluate(0)
    return run


def batch_run(directory: Path) -> SyntheticRun:
    """Return three rounds: perlmutter waits long and loses two blocks, polaris is refused twice, frontier is local."""
    plan = {
        "perlmutter": [(7200.0, 2000.0, "timeout"), (3600.0, 1500.0, "node_fail")],
        "polaris": [(300.0, 1e9, "cancelled")],
    }
    run = start_run(directory, rounds=3, blocks=BatchSites({"perlmutter": 4, "polaris": 1, "aurora": 8}, plan))
    for number, wait_s in enumerate((10, 20)):
        failure = {"kind": "refused", "reason": "qsub: Job violates limits", "retry_s": wait_s}
        run.event("block_failed", run.time + 10 * number, site="polaris", **failure)
    run.blocks.ready_s["polaris"] = run.time + 30  # type: ignore[union-attr]
    for number in range(1, run.rounds + 1):
        run.round(number)
    run.finish()
    return run


def finished_run(directory: Path, **options: Any) -> SyntheticRun:
    """Return a campaign without faults from the first round to the last."""
    run = start_run(directory, **options)
    for number in range(1, run.rounds + 1):
        run.round(number)
    run.finish()
    return run
