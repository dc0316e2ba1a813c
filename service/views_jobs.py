"""What `submit`, `status`, `stop` and `list` show of runs on a cluster, as text."""

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from service import views
from service.errors import ExitCode
from service.orchestration.job import Job
from service.orchestration.standing import Standing, State
from service.telemetry.logs import duration, verdict_line

_ENDS: dict[int, str] = {
    ExitCode.USER_ERROR: "error",
    ExitCode.NO_GO: "NO_GO",
    ExitCode.PAUSED: "PAUSE",
    ExitCode.NON_FINITE: "NaN",
    ExitCode.INTERRUPTED: "stopped",
}
_GOING = {"PENDING": "waiting", "RUNNING": "running"}


def next_steps(run: str, address: str) -> str:
    """What to type next. address: the words that name the cluster, or nothing."""
    steps = {"look": f"status {run}", "follow": f"logs -f {run}", "stop": f"stop {run}"}
    lines = [f"  {name:7} crossreid {words}{address}" for name, words in steps.items()]
    return "\n".join([f"run {run} goes on without this command", *lines]) + "\n"


def detached(run: str, address: str) -> str:
    return (
        f"no longer looking; run {run} goes on. Look again: crossreid logs -f {run}{address}   "
        f"end it: crossreid stop {run}{address}"
    )


def ended(job: Job, found: Standing | None, address: str) -> str:
    """A job that was waited for. found: where its run stands, None where that is not known."""
    is_done = job.exit_code == ExitCode.OK
    if found is None or (job.kind == "evaluate" and not is_done):
        return f"job {job.job_id}: {'done' if is_done else f'exit code {job.exit_code}'}\n"
    where = f"everything is in {found.folder} (summary.json, journal.jsonl)\n"
    if job.kind == "evaluate":
        return f"{views.evaluation(found.summary)}{where}"
    if found.state is State.LOST:
        return f"{where}{_left_off(job, found, address)}"
    again = f"{_saved(job, found)}{_go_on(job, address)}" if found.can_resume else ""
    told = verdict_line(found.verdict, found.words, found.remedy)
    return f"{views.evaluation(found.summary)}{where}{again}{told}\n"


def stopped(job: Job, found: Standing | None, address: str) -> str:
    """A job that was ended on demand."""
    if found is None:
        where = f"; crossreid status {job.run} --storage FOLDER says at which step"
        return f"job {job.job_id} has ended ({job.state}){where if job.trains else ''}\n"
    if found.state is State.ENDED:
        return f"run {found.run} had come to its end: {found.verdict}\n"
    failed = found.state is State.FAILED
    why = f"{verdict_line(found.verdict, found.words, found.remedy)}\n" if failed else ""
    return f"{_left_off(job, found, address)}{why}"


def _left_off(job: Job, found: Standing, address: str) -> str:
    """Where a run that has more to do was left, and how it goes on."""
    lost = "was killed" if job.signal else "has ended"
    hows = {State.LOST: lost, State.FAILED: "has failed"}
    how = hows.get(found.state, f"is {found.state}")
    steps = _steps(found)
    at = f": {steps} trials have ended" if job.kind == "tune" else f" at step {steps}"
    return f"run {found.run} {how}{at}\n{_saved(job, found)}{_go_on(job, address)}"


def _saved(job: Job, found: Standing) -> str:
    if job.kind == "tune":
        return ""
    if found.checkpoint_step is None:
        return "there is no checkpoint yet: it begins again at its first step\n"
    return f"checkpoint of step {found.checkpoint_step} in {found.checkpoint_at}\n"


def _go_on(job: Job, address: str) -> str:
    return f"go on: crossreid {_resume(job, address)}\n"


def standing(found: Standing) -> str:
    """Where a run stands, a line for each thing that is known."""
    rows = {
        "state": _state_words(found),
        "verdict": verdict_line(found.verdict, found.words, found.remedy),
        "trials" if found.trials else "step": _progress(found),
        "numbers": _numbers(found),
        "workers": _workers(found),
        "checkpoint": _checkpoint(found),
        "newest": found.newest,
        "folder": found.folder,
    }
    lines = [f"run {found.run}", *(f"  {name:10} {text}" for name, text in rows.items() if text)]
    text = "\n".join(lines) + "\n"
    return text + (_trials(found.trials) if found.trials else "")


def runs(newest: Sequence[Job], known: Sequence[Job], now: float) -> str:
    """A table of runs. newest: the last job of each kind of each run; known: all. now: Unix
    seconds."""
    if not newest:
        return "no runs on this cluster\n"
    table = Table(title="Runs on the cluster", title_justify="left")
    for name in ("run", "kind", "state", "end", "began", "took", "jobs"):
        table.add_column(name, justify="right" if name in ("began", "took", "jobs") else "left")
    for job in newest:
        table.add_row(
            job.run,
            job.kind,
            "ended" if job.has_ended else _GOING.get(job.state, job.state.lower()),
            _end_word(job),
            f"{duration(max(now - job.began, 0))} ago",
            duration(max((job.ended or now) - job.began, 0)),
            str(sum((one.run, one.kind) == (job.run, job.kind) for one in known)),
        )
    return views.plain(table)


def _end_word(job: Job) -> str:
    """How a job ended, as far as its exit code tells."""
    if not job.has_ended:
        return ""
    if job.exit_code == ExitCode.OK:
        return "done"
    if job.signal:
        return "killed"
    return "lost" if job.how_lost else _ENDS.get(job.exit_code, "failed")


def _resume(job: Job, address: str) -> str:
    kind = job.kind if job.trains else "train"
    return f"submit {kind} --resume {job.run}{address}"


def _state_words(found: Standing) -> str:
    resumes = "; --resume goes on with it" if found.can_resume else ""
    silent = ""
    if found.silent_s is not None and found.is_going:
        silent = f", last heard of {duration(max(found.silent_s, 0))} ago"
    return f"{found.state}{silent}{resumes}"


def _steps(found: Standing) -> str:
    return str(found.step) if found.total is None else f"{found.step} of {found.total}"


def _progress(found: Standing) -> str:
    parts = [f"{_steps(found)} have ended" if found.trials else _steps(found)]
    if found.epoch is not None:
        parts.append(f"epoch {found.epoch}")
    if found.eta_s is not None:
        parts.append(f"ETA {duration(found.eta_s)}")
    return ", ".join(parts)


def _numbers(found: Standing) -> str:
    numbers = (
        ("CE/lnC", found.ce_fraction, "{:.3f}"),
        ("top-1", found.top1, "{:.1%}"),
        ("SDM w", found.sdm_weight, "{:.1f}"),
        ("img/s", found.images_per_second, "{:.0f}"),
    )
    return "  ".join(
        f"{name} {form.format(value)}" for name, value, form in numbers if value is not None
    )


def _workers(found: Standing) -> str:
    if found.world_size is None:
        return ""
    restarts = f", started again {found.restarts} times" if found.restarts > 1 else ""
    return f"{found.world_size}{', started again once' if found.restarts == 1 else restarts}"


def _checkpoint(found: Standing) -> str:
    if found.checkpoint_step is None:
        return ""
    age = found.checkpoint_age_s
    old = "" if age is None else f", {duration(max(age, 0))} old"
    return f"step {found.checkpoint_step}{old}, in {found.checkpoint_at}"


def _trials(trials: Sequence[Standing]) -> str:
    table = Table()
    for name in ("trial", "state", "verdict", "step", "newest"):
        table.add_column(name, justify="right" if name == "step" else "left")
    for trial in trials:
        newest = escape(trial.newest)
        table.add_row(trial.run, str(trial.state), trial.verdict, _steps(trial), newest)
    return views.plain(table)
