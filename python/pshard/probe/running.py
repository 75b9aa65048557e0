"""The run through the probes: each once, what is doubtful once more, and the anchors of the machine's pace between."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pshard.probe.doubts import Doubt, excess, is_doubtful
from pshard.probe.falls import falls
from pshard.probe.gpu_work import GpuWork
from pshard.probe.load import share_of
from pshard.probe.pace import ANCHOR_SECONDS, Pace
from pshard.probe.works import ProbeFailed, Result, Storage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pshard.probe.probes import Prober
    from pshard.probe.works import Task, Work

# A figure that is less certain than this says nothing.
REFUSED_SPREAD = 0.5
# A probe gets at least this much, however late it is.
LEAST_SECONDS = 0.05


@dataclass(slots=True)
class Run:
    """What a run through the tasks gave.

    Attributes
    ----------
    results : list of Result
    refused : list of (Work, str)
        Probes without a figure, with the reason.
    left : list of Work
        Probes that were not reached.
    interrupted : bool
        A person ended it.
    seconds : float
        What it took.
    pace : Pace
        Of the machine meanwhile.
    """

    results: list[Result] = field(default_factory=list)
    refused: list[tuple[Work, str]] = field(default_factory=list)
    left: list[Work] = field(default_factory=list)
    interrupted: bool = False
    seconds: float = 0.0
    pace: Pace = field(default_factory=Pace)


def run(
    tasks: Sequence[Task],
    prober: Prober,
    *,
    limit_seconds: float,
    clock: Callable[[], float],
    on_task: Callable[[Work, float, float], None] = lambda work, done, left: None,
    others: Callable[[], float] = lambda: 0.0,
    n_cpus: int = 1,
    pace: Pace | None = None,
) -> Run:
    """Run through the tasks.

    Parameters
    ----------
    tasks : sequence of Task
    prober : Prober
    limit_seconds : float
        What all of it may take. Whoever sets up slowly shortens the repetitions of the rest.
    clock : callable
        Seconds from any moment.
    on_task : callable
        Called before each with the work, the share that is done, and the seconds that the rest will take at this pace.
    others : callable
        Seconds that other programs have taken of the processors (`load.OtherPrograms`); none by default.
    n_cpus : int
        Processors that `others` counts.
    pace : Pace, optional
        Without readings. Its anchors, which are among the tasks, are measured first, last and now and then between; by
        default there are none.

    Returns
    -------
    Run
        Ctrl-C ends it early; what was measured stays. What is doubtful (`doubts`) is measured once more at the end, if
        time is left, and the less doubtful of both counts. Where no doubt tells them apart it is the faster of two,
        since other work makes nothing faster, and of the many of an anchor the middle one.
    """
    running = _Running(tasks, prober, limit_seconds, clock, on_task, others, n_cpus, pace or Pace())
    interrupted = False
    try:
        running.measure_all()
        running.measure_again()
    except KeyboardInterrupt:
        interrupted = True
    return running.outcome(interrupted=interrupted)


@dataclass(frozen=True, slots=True)
class _Try:
    """One measurement, and the first and last reading of the pace beside it."""

    outcome: Result | ProbeFailed
    readings: tuple[int, int]


@dataclass(slots=True)
class _Running:
    tasks: Sequence[Task]
    prober: Prober
    limit_seconds: float
    clock: Callable[[], float]
    on_task: Callable[[Work, float, float], None]
    others: Callable[[], float]
    n_cpus: int
    pace: Pace
    tries: dict[Work, list[_Try]] = field(default_factory=lambda: defaultdict(list))
    start: float = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.clock()

    def measure_all(self) -> None:
        total = ahead = sum(task.budget_seconds for task in self.tasks)
        for task in self.tasks:
            if self._left() <= 0.0:
                break
            per_budget = self._spent() / (total - ahead) if ahead < total else self.limit_seconds / total
            self.on_task(task.work, 1.0 - ahead / total, min(self._left(), per_budget * ahead))
            if task.work not in self.tries:
                self._read_pace()
            if task.work not in self.tries:  # still: an anchor's is done
                self._try(task.work, task.budget_seconds * min(1.0, self._left() / ahead))
            ahead -= task.budget_seconds
        self._read_pace(with_all=True)

    def measure_again(self) -> None:
        again: set[Work] = set()
        while self._left() > 0.0 and (task := self._first_doubtful(again)) is not None:
            self.on_task(task.work, 1.0, self._left())
            self._try(task.work, min(task.budget_seconds, self._left()))
            again.add(task.work)
            self._read_pace()
        if again:
            self._read_pace(with_all=True)

    def outcome(self, *, interrupted: bool) -> Run:
        done = Run(interrupted=interrupted, seconds=self._spent(), pace=self.pace)
        chosen = self._chosen()
        for task in self.tasks:
            outcome = chosen.get(task.work)
            if outcome is None:
                done.left.append(task.work)
            elif isinstance(outcome, ProbeFailed):
                done.refused.append((task.work, str(outcome)))
            elif not _is_usable(outcome):
                reason = f"runs differ by more than {REFUSED_SPREAD:.0%}; something else runs here"
                done.refused.append((task.work, reason))
            else:
                done.results.append(_doubted(outcome, Doubt.MOVED, self.pace.moved))
        return done

    def _spent(self) -> float:
        return self.clock() - self.start

    def _left(self) -> float:
        return self.limit_seconds - self._spent()

    def _read_pace(self, *, with_all: bool = False) -> None:
        """Measure the anchors that are due, which are figures of the profile too."""
        for work in self.pace.begin(self._spent(), with_all=with_all) if self.pace.anchors else ():
            found = self._try(work, ANCHOR_SECONDS)
            if self.pace.is_unusual(found):
                # A slow stretch lasts longer than a look; what does not is noise, or was never there.
                found = self._try(work, ANCHOR_SECONDS)
            if isinstance(found, Result) and not excess(found):
                self.pace.add(found)

    def _try(self, work: Work, seconds: float) -> Result | ProbeFailed:
        taken_before, before = self.others(), self.clock()
        outcome: Result | ProbeFailed
        try:
            outcome = self.prober.measure(work, max(LEAST_SECONDS, seconds))
        except ProbeFailed as error:
            outcome = error
        else:
            taken = share_of(self.others() - taken_before, self.clock() - before, self.n_cpus)
            outcome = _doubted(outcome, Doubt.LOAD, taken)
        last = len(self.pace.readings) - 1
        self.tries[work].append(_Try(outcome, (last, last if work in self.pace.anchors else last + 1)))
        return outcome

    def _first_doubtful(self, without: set[Work]) -> Task | None:
        chosen = self._chosen()
        for task in self.tasks:
            outcome = chosen.get(task.work)
            if task.work not in without and isinstance(outcome, Result) and is_doubtful(outcome):
                return task
        return None

    def _chosen(self) -> dict[Work, Result | ProbeFailed]:
        """Of each work the measurement that counts, with its doubts so far."""
        chosen = {work: self._best(tries) for work, tries in self.tries.items()}
        usable = {
            work: outcome for work, outcome in chosen.items() if isinstance(outcome, Result) and _is_usable(outcome)
        }
        for work, share in falls(usable).items():
            chosen[work] = replace(usable[work], doubts={**usable[work].doubts, Doubt.FALL: share})
        return chosen

    def _best(self, tries: Sequence[_Try]) -> Result | ProbeFailed:
        results = [
            _doubted(tried.outcome, Doubt.PACE, self.pace.off(*tried.readings))
            for tried in tries
            if isinstance(tried.outcome, Result)
        ]
        if not results:
            return tries[0].outcome
        least = min(excess(result) for result in results)
        equal = [result for result in results if excess(result) == least]
        equal.sort(key=lambda result: result.sample.median_seconds)
        return equal[(len(equal) - 1) // 2]


def _doubted(result: Result, reason: Doubt, share: float) -> Result:
    """Add a doubt, unless it is none, or of a probe that waits for other parts of the machine than its processors."""
    if share <= 0.0 or isinstance(result.work, Storage | GpuWork):
        return result
    return replace(result, doubts={**result.doubts, reason: share})


def _is_usable(result: Result) -> bool:
    return result.disagreement < REFUSED_SPREAD
