"""Move layers when measured latencies say so: `LoadBalancer` collects them, and decides.

Each shard's latencies become one number per phase: how much longer its device takes than was expected. These factors
correct the tables that the layers were placed by, and the same exact assignment is solved again. What comes out is
proposed only if there is a reason to look at all (a shift, or shards that differ by more than a threshold), if the gain
is certain within the intervals of the estimates, and if the move pays back in time. docs/rebalancing.md derives the
rules.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from pshard._core import LatencySeries, alarm_height, interval_deviations
from pshard.rebalance.deployment import PHASES, Deployment, Phase, by_hand
from pshard.rebalance.history import History
from pshard.rebalance.tally import Tally
from pshard.rebalance.types import MIN_LEVEL, Decision, RebalanceConfig, ShardMetrics
from pshard.rebalance.worth import Proposal, best_proposal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from pshard._core import LatencyShift
    from pshard.rebalance.history import Bounds, Placement

    Array = npt.NDArray[np.float64]

__all__ = ["Decision", "LoadBalancer", "RebalanceConfig", "ShardMetrics"]

# Standard errors that intervals span while a shift is fresh: that there is one is known, only how large is asked.
FRESH_DEVIATIONS = 2.0
# What a device without latencies may be off its prediction: 83 of 99 published figures are (docs/accuracy.md).
UNMEASURED_FACTOR = 1.5


class LoadBalancer:
    """Latencies of shards in, decisions out.

    Attributes
    ----------
    config : RebalanceConfig
    deployment : Deployment or None
    counts_layers : bool
        Shards are of layers, so that a latency of another count is of another assignment.
    history : History
        What was left and set aside; to be kept between processes, where one decides once and ends.

    Parameters
    ----------
    config : RebalanceConfig, optional
    deployment : Deployment, optional
        What is there; or call `register_shards`.
    clock : callable
        Seconds that never go back; for tests.

    Examples
    --------
    >>> balancer = LoadBalancer(RebalanceConfig(min_samples=50))
    >>> balancer.register_shards([("fast", 8), ("slow", 8)])
    >>> for _ in range(100):
    ...     balancer.record("fast", 80.0)
    ...     balancer.record("slow", 800.0)
    >>> balancer.evaluate().suggested
    (('fast', 15), ('slow', 1))
    """

    counts_layers = True

    def __init__(
        self,
        config: RebalanceConfig | None = None,
        deployment: Deployment | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config or RebalanceConfig()
        self.deployment: Deployment | None = None
        self._clock = clock
        self._series: dict[Phase, dict[str, LatencySeries]] = {phase: {} for phase in PHASES}
        self._unknown = Tally()
        # Which pass in the order of arrival was the last of each shard: stamps may be of clocks that disagree.
        self._order: dict[Phase, Iterator[int]] = {}
        self._arrived: dict[Phase, dict[str, int]] = {}
        self.history = History()
        self._deployed: Placement | None = None
        self._decided: tuple[float, Decision, int] | None = None
        self._deviations = math.inf
        if deployment is not None:
            self.deploy(deployment)

    def register_shards(self, shards: Sequence[tuple[str, int]]) -> None:
        """Say which shards there are, and how many layers each has, in the order in which a token passes them.

        Parameters
        ----------
        shards : sequence of (str, int)

        Raises
        ------
        SettingError
            No layers, or a name twice.
        """
        self.deploy(by_hand(shards))

    def deploy(self, deployment: Deployment) -> None:
        """Say what is deployed now; latencies begin anew. What was deployed before has been left."""
        if self.deployment is not None:
            self._leave(self.deployment, deployment)
        self.deployment = deployment
        if self._deployed is not None:
            self.history.leave(self._deployed, self.placement, self._clock())
        self._deployed = self.placement
        # Every shard may be found slower or faster.
        rate = self.config.false_alarms_per_window / (2 * int(deployment.used.sum()))
        self._deviations = interval_deviations(rate)
        height = alarm_height(self.config.window / rate)
        for phase in PHASES:
            self._series[phase] = {}
            if phase in deployment.tables:
                tokens, seconds = deployment.expected_seconds(phase)
                self._series[phase] = {
                    name: self._new_series(height, tokens, seconds[index])
                    for index, name in enumerate(deployment.shards)
                    if deployment.counts[index]
                }
        self._forget_order()
        self._decided = None

    def record(
        self,
        name: str,
        latency_us: float,
        phase: Phase = "decode",
        n_tokens: float = 1,
        time_unix_s: float | None = None,
    ) -> None:
        """Record one pass of one shard.

        Parameters
        ----------
        name : str
            A name that no shard has is counted and told by the next decision.
        latency_us : float
            Microseconds. What is no latency is counted, told, and otherwise left out.
        phase : {"decode", "prefill"}
        n_tokens : int
            Tokens of the pass.
        time_unix_s : float, optional
            When it ended; now by default.
        """
        try:
            series = self._series[phase][name]
        except (KeyError, TypeError):
            self._count_unknown(name, phase)
            return
        self._arrived[phase][name] = next(self._order[phase])
        try:
            series.record(latency_us, n_tokens, time.time() if time_unix_s is None else time_unix_s)
        except TypeError:
            series.record_invalid()

    def reset(self) -> None:
        """Forget all latencies, as after a move; what was left before is remembered."""
        for by_name in self._series.values():
            for series in by_name.values():
                series.reset()
        self._forget_order()
        self._unknown.clear()
        self._decided = None

    def remember(self, history: History) -> None:
        """Take up what another process remembered of these shards."""
        self.history = history
        for device in self.deployment.used_names if self.deployment is not None else ():
            history.take_back(device, self._clock())

    @property
    def shards(self) -> tuple[str, ...]:
        """Names of all shards."""
        return () if self.deployment is None else self.deployment.shards

    @property
    def has_latencies(self) -> bool:
        """Any were recorded since the last reset."""
        return any(arrived for by_name in self._arrived.values() for arrived in by_name.values())

    @property
    def metrics(self) -> dict[str, ShardMetrics]:
        """What is known of every shard, by name."""
        deployment = self.deployment
        if deployment is None:
            return {}
        stages = {phase: tables.work_seconds(deployment.counts) for phase, tables in deployment.tables.items()}
        return {name: self._metrics(deployment, index, stages) for index, name in enumerate(deployment.shards)}

    def evaluate(self) -> Decision:
        """Decide whether layers should move.

        Returns
        -------
        Decision
            The last one again within `eval_interval_secs`, unless a shift was found since or has not settled. The
            interval begins with a decision that was made: not having had enough latencies is none.
        """
        series = [series for by_name in self._series.values() for series in by_name.values()]
        n_shifts = sum(one.shifts for one in series)
        at = self._clock()
        if self._decided is not None:
            decided_at, decision, shifts_then = self._decided
            settled = n_shifts == shifts_then and not any(one.is_fresh for one in series)
            if settled and at - decided_at < self.config.eval_interval_secs:
                return decision
        decision = self._decide()
        if decision.kind != "insufficient_data":
            self._decided = (at, decision, n_shifts)
        return decision

    def _forget_order(self) -> None:
        for phase, by_name in self._series.items():
            self._order[phase] = count(1)
            self._arrived[phase] = dict.fromkeys(by_name, 0)

    def _leave(self, before: Deployment, after: Deployment) -> None:
        """Remember how fast the devices were that have no layers now."""
        if before.shards != after.shards:
            self.history, self._deployed = History(), None
            return
        now, had, have = self._clock(), before.used_names, after.used_names
        for device in sorted(had - have):
            self.history.set_aside(device, self._last_bounds(device), now, self.config.retry_secs)
        for device in have - had:
            self.history.take_back(device, now)

    def _last_bounds(self, device: str) -> dict[Phase, Bounds]:
        """Return what a device counts as once it has no layers, by the predictions of what is deployed then."""
        measured = ((phase, self._measured(phase, device, self._interval(phase))) for phase in PHASES)
        return {phase: row for phase, row in measured if row is not None}

    def _new_series(self, height: float, tokens: Array, seconds: Array) -> LatencySeries:
        config = self.config
        return LatencySeries(
            window=config.window,
            warm_up=config.warm_up,
            settle=min(config.min_samples, config.window),
            half_life=config.half_life,
            alarm_height=height,
            deviations=self._deviations,
            expected_tokens=tokens.tolist(),
            expected_seconds=seconds.tolist(),
        )

    def _decide(self) -> Decision:
        deployment = self.deployment
        if deployment is None:
            return Decision(kind="insufficient_data", reason="No shards are registered.", current=())
        notes = tuple(f"{problem} ({count} times)." for problem, count in sorted(self.problems.items()))
        current = self._named(deployment.counts) or ()
        phase, lacking = self._phase()
        if phase is None:
            return Decision(kind="insufficient_data", reason=lacking, current=current, notes=notes)
        if silent := self._silent(phase):
            name, behind = silent
            reason = f"{name} has not reported in {phase} for {behind} passes of the others; is it still there?"
            return Decision(kind="insufficient_data", reason=reason, current=current, phase=phase, notes=notes)
        bounds = self._bounds(deployment, phase)
        proposal = self._propose(deployment, phase, bounds)
        decision = Decision(
            kind="balanced",
            reason="No assignment fits the memories, the present one included; nothing is proposed.",
            current=current,
            phase=phase,
            factors={name: tuple(row) for name, row in zip(deployment.shards, bounds.tolist(), strict=True)},
            notes=notes,
        )
        if proposal is None:
            return decision
        objection = self._objection(phase, proposal, self._imbalance(deployment, phase, bounds[:, 0]))
        if objection is None:
            objection = self._too_soon(proposal)
        else:
            self.history.wanted = None
        reason = objection or self._argument(phase, proposal, deployment)
        return replace(
            decision,
            kind="balanced" if objection else "rebalance",
            reason=reason,
            suggested=self._named(proposal.counts),
            estimated_speedup=proposal.gain,
            certain_speedup=proposal.certain_gain,
            single_stream_speedup=proposal.single_stream_gain,
            move=proposal.move,
            break_even_seconds=proposal.break_even_seconds,
        )

    def _named(self, counts: Sequence[int]) -> tuple[tuple[str, int], ...] | None:
        """Return layers by shard; None where shards are not of layers."""
        assert self.deployment is not None
        return tuple(zip(self.deployment.shards, counts, strict=True)) if self.counts_layers else None

    def _propose(self, deployment: Deployment, phase: Phase, bounds: Array) -> Proposal | None:
        """Find the best assignment; `bounds` is of shape (D, 3): estimate, lower and upper bound of each factor."""
        return best_proposal(deployment, deployment.tables[phase], *bounds.T)

    @property
    def placement(self) -> Placement:
        """What the present assignment is known by once it has been left."""
        assert self.deployment is not None
        return self.deployment.counts

    def _proposed_placement(self, proposal: Proposal) -> Placement:
        return proposal.counts

    def _objection(self, phase: Phase, proposal: Proposal, ratio: float) -> str | None:
        """Say why the proposal is not made; None where nothing speaks against it."""
        config = self.config
        if proposal.is_same:
            return "No other assignment is faster."
        has_reason = self._shifts(phase) or self._tried(proposal) or self._on_trial()
        if not has_reason and ratio <= config.imbalance_threshold:
            return (
                f"The slowest shard takes {ratio:.2f} times what the fastest does, which is within the threshold of "
                f"{config.imbalance_threshold:g}, and no shard has shifted."
            )
        if proposal.gain < 1 + config.min_gain:
            return (
                f"The best assignment would be {proposal.gain:.2f} times as fast, and less than "
                f"{1 + config.min_gain:g} is not worth it."
            )
        if proposal.certain_gain <= 1:
            return (
                f"The best assignment would be {proposal.gain:.2f} times as fast, but that may be noise: within the "
                f"intervals of the estimates it is {proposal.certain_gain:.2f} at least."
            )
        pays_back = proposal.break_even_seconds
        if pays_back is not None and pays_back > config.max_break_even_secs:
            return (
                f"The move would take {pays_back:.0f} s of serving to pay back, and more than "
                f"{config.max_break_even_secs:g} s is too long."
            )
        return None

    def _due(self) -> list[str]:
        """Devices that were set aside for so long that they are tried again."""
        now = self._clock()
        return [device for device, entry in self.history.aside.items() if entry.is_due(now)]

    def _tried(self, proposal: Proposal) -> list[str]:
        """Those of them that a proposal gives layers to."""
        assert self.deployment is not None
        counts = dict(zip(self.deployment.shards, proposal.counts, strict=True))
        return [device for device in self._due() if counts.get(device)]

    def _on_trial(self) -> list[str]:
        """Devices that were tried again so lately that they must still show what they are."""
        now = self._clock()
        return [device for device, entry in self.history.aside.items() if entry.is_on_trial(now)]

    def _imbalance(self, deployment: Deployment, phase: Phase, factors: Array) -> float:
        """Return slowest over fastest shard: per layer, or against prediction, whichever is more.

        Of a single shard it is how far it is from its prediction.
        """
        used = deployment.used
        against_prediction = factors[used]
        if len(against_prediction) == 1:
            return float(max(against_prediction[0], 1 / against_prediction[0])) if deployment.is_predicted else 1.0
        ratios = [against_prediction.max() / against_prediction.min()]
        if self.counts_layers:
            work = deployment.tables[phase].corrected(factors).work_seconds(deployment.counts)
            per_layer = work[used] / np.array(deployment.counts)[used]
            ratios.append(per_layer.max() / per_layer.min())
        return float(max(ratios))

    def _too_soon(self, proposal: Proposal) -> str | None:
        """Hold back a return to what was left until staying has cost what moving does.

        Whoever waits so never loses more than twice what knowing the future would have saved (ski rental; A. Karlin et
        al. 1988), however often a device changes its mind.
        """
        history, now = self.history, self._clock()
        former = history.returned_to(self.placement, self._proposed_placement(proposal))
        if former is None:
            history.wanted = None
            return None
        since = history.want(former, now)
        away = now - history.left[former]
        if away < self.config.eval_interval_secs:
            return (
                f"This goes back to what was left {away:.0f} s ago, which is not done within "
                f"{self.config.eval_interval_secs:g} s."
            )
        lost = (now - since) * (1 - 1 / proposal.gain)
        price = self.config.hysteresis * (proposal.move.seconds or 0.0)
        if lost < price:
            return (
                f"This goes back to what was left before; staying has cost {lost:.1f} s so far, and going back "
                f"costs {price:.1f} s."
            )
        return None

    def _argument(self, phase: Phase, proposal: Proposal, deployment: Deployment) -> str:
        said = [f"{name} takes {s.factor:.2f} times what it took" for name, s in self._shifts(phase).items()]
        cause = ", ".join(said) if said else "The shards differ by more than the threshold"
        if not said and self._tried(proposal):
            cause = f"{' and '.join(self._tried(proposal))} had become slow, and may be as predicted again"
        elif not said and len(deployment.shards) == 1:
            cause = f"{deployment.shards[0]} takes longer or shorter than expected by more than the threshold"
        what = "slowest stage" if deployment.objective == "throughput" else "pass"
        return (
            f"{cause}: the {what} is predicted to be {proposal.gain:.2f} times as fast "
            f"({proposal.certain_gain:.2f} at least)."
        )

    def _phase(self) -> tuple[Phase | None, str]:
        """Return the phase that took most time among those with enough latencies; else None and what lacks."""
        enough, lacking = [], "No latencies were recorded."
        for phase in sorted((p for p in PHASES if self._series[p]), key=self._total_us):
            short = [
                f"{name} has {s.counters.forwards} of {self.config.min_samples} passes"
                if s.counters.forwards < self.config.min_samples
                else f"{name} has {s.samples} passes since it was warm or shifted, and {MIN_LEVEL} tell something"
                for name, s in self._series[phase].items()
                if s.counters.forwards < self.config.min_samples or s.samples < MIN_LEVEL
            ]
            if not short:
                enough.append(phase)
            elif self._total_us(phase) > 0:
                more = f", and {len(short) - 1} shards more lack some" if len(short) > 1 else ""
                lacking = f"Not enough latencies in {phase}: {short[0]}{more}."
        return (enough[-1], "") if enough else (None, lacking)

    def _total_us(self, phase: Phase) -> float:
        return sum(series.counters.total_us for series in self._series[phase].values())

    def _shifts(self, phase: Phase) -> dict[str, LatencyShift]:
        return {name: series.shift for name, series in self._series[phase].items() if series.shift is not None}

    def _silent(self, phase: Phase) -> tuple[str, int] | None:
        """Return a shard that has stopped reporting while others go on, and for how many of their passes.

        Its last latencies tell nothing about now. Of a file in which one shard's passes follow all of another's, both
        have as many.
        """
        if not self._series[phase]:
            return None
        forwards = {name: series.counters.forwards for name, series in self._series[phase].items()}
        others = max(1, len(forwards) - 1)
        latest = max(self._arrived[phase].values())
        for name, arrived in self._arrived[phase].items():
            since = (latest - arrived) // others
            behind = min(since, max(forwards.values()) - forwards[name])
            if behind > self.config.silent_passes:
                return name, behind
        return None

    def _has_estimates(self, phase: Phase) -> bool:
        return any(series.samples >= MIN_LEVEL for series in self._series[phase].values())

    def _bounds(self, deployment: Deployment, phase: Phase) -> Array:
        """Return estimate, lower and upper bound of every device's factor. Shape (D, 3).

        A device without layers is as it was measured last, until it is tried again: then it is as predicted.
        """
        spread = UNMEASURED_FACTOR if deployment.is_predicted else 1.0
        due, interval = self._due(), self._interval(phase)
        rows = []
        for name in deployment.shards:
            entry = self.history.aside.get(name)
            last = entry.bounds.get(phase) if entry is not None and name not in due else None
            rows.append(self._measured(phase, name, interval) or last or (1.0, 1 / spread, spread))
        return np.array(rows)

    def _interval(self, phase: Phase) -> float:
        """Deviations of an estimate from which its bounds are; more while a shift has not settled."""
        is_fresh = any(series.is_fresh for series in self._series[phase].values())
        return FRESH_DEVIATIONS if is_fresh else self._deviations

    def _measured(self, phase: Phase, name: str, interval: float) -> Bounds | None:
        """Return a device's factor with its bounds; None where it has no latencies."""
        by_name = self._series[phase]
        estimate = by_name[name].estimate() if name in by_name else None
        if estimate is None:
            return None
        margin = math.exp(interval * estimate.error)
        return estimate.median, estimate.median / margin, estimate.median * margin

    def _count_unknown(self, name: object, phase: object) -> None:
        known = self.deployment is not None and name in self.deployment.shards and phase in PHASES
        key = f"{name} (it has no layers)" if known else str(name) if phase in PHASES else f"{name} in phase {phase!r}"
        self._unknown.add(f"latencies of {key} are left out: no such shard is deployed")

    @property
    def problems(self) -> dict[str, int]:
        """What was wrong with the latencies since the last reset, and how often."""
        found = dict(self._unknown)
        for phase, by_name in self._series.items():
            if silent := self._silent(phase):
                name, behind = silent
                found[f"{name} has stopped reporting in {phase}, and the others go on"] = behind
            for name, series in by_name.items():
                counters = series.counters
                if counters.invalid:
                    found[f"values of {name} in {phase} are left out: not between 0 and one hour"] = counters.invalid
                if counters.clock_backwards:
                    went_back = f"the clock of {name} went back in {phase}; the order of arrival counts"
                    found[went_back] = counters.clock_backwards
        return found

    def _metrics(self, deployment: Deployment, index: int, stages: Mapping[Phase, Array]) -> ShardMetrics:
        name = deployment.shards[index]
        layers = deployment.counts[index] if self.counts_layers else 0
        series = {phase: by_name[name] for phase, by_name in self._series.items() if name in by_name}
        estimates = {phase: s.estimate() for phase, s in series.items()}
        counters = [s.counters for s in series.values() if s.counters.forwards]
        last = max(counters, key=lambda c: c.last_unix_s, default=None)
        stage_us = {phase: float(stages[phase][index]) * 1e6 for phase in series}
        return ShardMetrics(
            shard=name,
            layers=layers,
            forwards=sum(c.forwards for c in counters),
            total_latency_us=sum(c.total_us for c in counters),
            min_latency_us=min((c.min_us for c in counters), default=0.0),
            max_latency_us=max((c.max_us for c in counters), default=0.0),
            last_latency_us=last.last_us if last else 0.0,
            last_update_unix_s=last.last_unix_s if last and math.isfinite(last.last_unix_s) else None,
            phases={phase: e for phase, e in estimates.items() if e is not None},
            median_us={phase: e.median * stage_us[phase] for phase, e in estimates.items() if e is not None},
            shifts={phase: s.shift for phase, s in series.items() if s.shift is not None},
            invalid=sum(s.counters.invalid for s in series.values()),
            warm_up=sum(s.counters.warm_up for s in series.values()),
            clock_backwards=sum(s.counters.clock_backwards for s in series.values()),
        )
