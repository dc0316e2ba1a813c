"""Log lines for people: the documents' own formats, as pure functions, and where they go."""

import logging
import math
import sys
from collections.abc import Mapping
from typing import Any

from service.health import HealthReport
from service.redaction import redacted

LOGGER = "crossreid"

TROUBLES = {
    "lost": "[workers] {words}; all start again from the last checkpoint",
    "start_failed": "[workers] try {tries} to start them failed, another follows: {words}",
    "waiting": "[workers] none run for {seconds:.0f} s: the cluster has no room for {workers}",
    "locked": "[workers] these wait until a worker of an earlier attempt has ended: {holder}",
    "fetching": "[data] records and weights are still being read, for {seconds:.0f} s by now",
    "leaving": "[workers] {machines}; what was trained up to step {step} is saved first",
    "checkpoint_failed": "[checkpoint] the checkpoint of step {step} was not written: {message}",
    "checkpoint_skipped": "[checkpoint] the checkpoint of step {step} was left out for a newer one",
    "checkpoint_stays": "[checkpoint] older checkpoints than that of step {step} stay: {message}",
    "checkpoint_unread": "[checkpoint] {message}; they are tried again in {seconds:.0f} s",
    "checkpoint_damaged": "[checkpoint] {folder} is passed over: {message}",
    "checkpoint_slow": "[checkpoint] the last one, of step {step}, takes {seconds:.0f} s by now",
}
"""What is said of events about machines and stores, by their name."""


def start_lines(event: Mapping[str, Any]) -> list[str]:
    """What a run will do, before its first step: the sampler's plan and the calendar."""
    calendar = [f"[plan] {line}" for line in event["schedule"]]
    return [f"[sampler] {event['plan']}", *calendar]


def sdm_line(epoch: int, weight: float, reason: str = "") -> str:
    """The SDM weight at the start of an epoch, as applied."""
    because = f" reason={reason}" if reason else ""
    return f"[sdm] epoch={epoch} weight={weight:.3f} use_sdm={weight > 0}{because}"


def head_line(weight_norm: float, grad_norm: float, lr: float) -> str:
    return f"head |w|={weight_norm:.4f} |g|={grad_norm:.4f} lr={lr:g}"


def coverage_line(pair_coverage: float) -> str:
    return f"[dbg] pair_coverage_mavg={pair_coverage:.3f}"


def unpaired_line(step: int, rows: int, of: int) -> str:
    """One batch's rows without a positive."""
    return f"[sampler] step={step} no positive: {rows} of {of} rows ({rows / of:.1%})"


def audit_line(event: Mapping[str, Any]) -> str:
    """What a look at the coming batches found."""
    return (
        f"[sampler] step={event['step']} audit of {event['batches']} batches: {event['ids']} ids, "
        f"{event['unpaired_ids']} of them unpaired, {event['repeated_ids']} repeated; "
        f"{event['repeated_rows']} rows repeated"
    )


def directive_line(step: int, directive: Mapping[str, Any]) -> str:
    """A directive as applied; `directive` is `Directive.to_dict()`."""
    asked = " ".join(action_words(action) for action in directive["actions"])
    return f"[control] step={step} {asked}: {directive['reason']}"


def action_words(action: Mapping[str, Any]) -> str:
    """An action as `name=value`, or its name alone where a value says nothing."""
    has_value = action["name"] in ("sdm_weight", "head_lr", "head_probe", "ids_per_batch")
    return f"{action['name']}={action['value']:g}" if has_value else action["name"]


def trouble_line(event: Mapping[str, Any]) -> str:
    """What an event of `TROUBLES` says."""
    return TROUBLES[event["event"]].format(**event)


def top1_line(top1: float) -> str:
    return f"top1={top1:.2%}"


def ce_line(report: HealthReport) -> str:
    chance = math.log(report.num_classes)
    return (
        f"ce={report.ce:.4f} chance={chance:.4f} ce/chance={report.ce_fraction:.3f} "
        f"slope={report.ce_slope:+.2e}"
    )


def health_lines(report: HealthReport) -> list[str]:
    """The lines of one report, in reading order."""
    where = f"step={report.step}/{report.total_steps} epoch={report.epoch}"
    lines = [
        f"{where} {ce_line(report)} {top1_line(report.top1)}",
        head_line(report.head_norm, report.head_grad_norm, report.head_lr),
        coverage_line(report.pair_coverage),
    ]
    if report.sdm_weight > 0:
        lines.append(
            f"[sdm] loss={report.sdm:.3f} chance={report.sdm_chance:.3f} "
            f"rows={report.sdm_rows:g} positives={report.sdm_positives:.1f} "
            f"gradient={report.sdm_gradient_share:.0%} memory={report.memory_rows}"
        )
    return lines


def decision_line(decision: Mapping[str, Any]) -> str:
    """A decision in one line, with what was found; `decision` is `Decision.to_dict()`."""
    parts = [f"[verdict] step={decision['step']} {decision['verdict']}"]
    if decision.get("words"):
        found = "; ".join(finding_words(f) for f in decision["findings"])
        parts.append(decision["words"] + (f" ({found})" if found else ""))
    if decision.get("reason"):
        parts.append(decision["reason"])
    actions = [a for a in decision.get("actions", ()) if a["name"] != "stop"]
    acts = [action_words(action) for action in actions]
    return ": ".join(parts) + (f" [{', '.join(acts)}]" if acts else "")


def finding_words(finding: Mapping[str, Any]) -> str:
    """A finding: its line, what was observed, the bound, and since when."""
    since = f" since step {finding['since']}" if finding["since"] < finding["step"] else ""
    return f"{finding['line']} {finding['observed']:.4g}, bound {finding['bound']:.4g}{since}"


def verdict_line(verdict: str, words: str, remedy: str) -> str:
    """How a run ended: `NO_GO: <cause> - <remedy>`, or the verdict alone."""
    line = f"{verdict}: {words}" if words else verdict
    return f"{line} - {remedy}" if remedy else line


def numbers_line(line: Mapping[str, Any]) -> str:
    """The loop's newest numbers; empty before the first report."""
    if not line:
        return ""
    sdm = f"  SDM w={line['sdm_weight']:.1f}" if line["sdm_weight"] > 0 else ""
    return (
        f"CE/lnC {line['ce_fraction']:.3f}  top-1 {line['top1']:.1%}{sdm}  "
        f"{line['images_per_second']:.0f} img/s  {line['verdict']}"
    )


def progress_line(step: int, total: int, line: Mapping[str, Any], eta_s: float | None) -> str:
    """Where a run stands, for a screen that is not a terminal."""
    eta = "" if eta_s is None else f"ETA {duration(eta_s)}"
    return "  ".join(part for part in (f"step {step}/{total}", numbers_line(line), eta) if part)


def duration(seconds: float) -> str:
    """Seconds as 42s, 3m05s or 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def setup_logging(level: int = logging.INFO) -> logging.Logger:
    """The product's logger, writing to standard error; calling it again changes only the level."""
    logger = logging.getLogger(LOGGER)
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Redacting("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(level)
    return logger
