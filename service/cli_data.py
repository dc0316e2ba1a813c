"""The words and answers of `crossreid data`."""

import argparse
import json
from pathlib import Path
from typing import Any

from service.cli_words import Answer, Command, Run

# -- the words -------------------------------------------------------------------------------------


def add_data(commands: Any, command: Command, run: Run) -> None:
    """The subparsers of `data`; each calls `run`, which asks `data_answer`."""
    data = commands.add_parser("data", help="make, ingest and inspect data")
    kinds = data.add_subparsers(dest="kind", required=True, metavar="COMMAND")
    synth = command(kinds, "synth", run, "draw a small data set in ORBench's format")
    synth.add_argument("folder", type=Path)
    synth.add_argument("--people", type=int, default=96)
    synth.add_argument("--images", type=int, default=30, help="images of each person")
    synth.add_argument("--size", default="96x48", help="HEIGHTxWIDTH in pixels")
    synth.add_argument("--seed", type=int, default=0)
    synth.add_argument("--difficulty", type=float, default=0.3, help="0 to 1")
    synth.add_argument("--test-share", type=float, default=1 / 3, help="of the people")
    synth.add_argument("--sheet", type=Path, metavar="PNG", help="also write a contact sheet")
    ingest = command(kinds, "ingest", run, "read an ORBench-format folder into records")
    ingest.add_argument("folder", type=Path)
    ingest.add_argument("records", help="target folder or fsspec URL")
    ingest.add_argument("--size", required=True, help="HEIGHTxWIDTH in pixels, as the model wants")
    ingest.add_argument("--context-length", type=int, default=77, help="tokens of a caption")
    ingest.add_argument("--max-quarantine-share", type=float, default=0.01)
    ingest.add_argument("--threads", type=int)
    inspect = command(kinds, "inspect", run, "show what records hold")
    inspect.add_argument("records", help="folder or fsspec URL")


# -- the answers -----------------------------------------------------------------------------------


def data_answer(args: argparse.Namespace) -> Answer:
    """Makes, ingests or inspects data.

    Raises:
        CrossReidError: what is wrong with folder, files or settings.
    """
    answers = {"synth": _synth, "ingest": _ingest, "inspect": _inspect}
    return answers[args.kind](args)


def _synth(args: argparse.Namespace) -> Answer:
    from service.data.sheet import contact_sheet
    from service.data.synthetic import SynthSettings, synthesize
    from service.orchestration.words import parse_size

    settings = SynthSettings(
        people=args.people,
        images_per_person=args.images,
        image_size=parse_size(args.size),
        seed=args.seed,
        difficulty=args.difficulty,
        test_share=args.test_share,
    )
    made = synthesize(args.folder, settings)
    sheet = contact_sheet(made.folder, args.sheet) if args.sheet else None
    values = {
        "folder": str(made.folder),
        "train_people": made.num_train,
        "test_people": made.num_test,
        "images": made.num_images,
        "captions": made.num_captions,
        "gallery": made.num_gallery,
        "queries": made.num_queries,
        "sheet": str(sheet) if sheet else None,
    }
    images = sum(made.num_images.values())
    return Answer(
        values,
        f"{made.folder}: {made.num_train} people to train on, {made.num_test} to test on, "
        f"{images} images, {made.num_captions} captions, {made.num_queries} queries\n"
        + (f"sheet {sheet}\n" if sheet else ""),
    )


def _ingest(args: argparse.Namespace) -> Answer:
    from service import views
    from service.data.ingest import ingest
    from service.orchestration.progress import rows_progress
    from service.orchestration.words import parse_size

    size = parse_size(args.size)
    with views.progress() as show:
        manifest = ingest(
            args.folder,
            args.records,
            image_size=size,
            context_length=args.context_length,
            max_quarantine_share=args.max_quarantine_share,
            threads=args.threads,
            progress=rows_progress(show, str(args.folder)),
        )
    rows = {split: sum(counts.values()) for split, counts in manifest.counts.items()}
    values = {
        "records": args.records,
        "train_people": manifest.num_classes,
        "rows": rows,
        "quarantined": [bad.source for bad in manifest.quarantined],
        "fingerprint": manifest.fingerprint,
    }
    bad = f", {len(manifest.quarantined)} images quarantined" if manifest.quarantined else ""
    told = ", ".join(f"{number} {split} rows" for split, number in rows.items())
    text = f"{args.records}: {manifest.num_classes} people to train on, {told}{bad}\n"
    return Answer(values, text)


def _inspect(args: argparse.Namespace) -> Answer:
    from service import views
    from service.data.index import IdentityIndex
    from service.data.records import Records

    records = Records.open(args.records, "train")
    found = records.manifest
    index = IdentityIndex.build(records.class_index, records.modality, records.num_classes)
    lonely = [
        person.dir_id
        for person, pairable in zip(found.classes, index.pairable, strict=True)
        if not pairable
    ]
    pairable = found.num_classes - len(lonely)
    values = json.loads(found.to_json()) | {"pairable": pairable, "not_pairable": lonely}
    return Answer(values, views.manifest(found, pairable, lonely))
