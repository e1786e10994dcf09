"""The W&B dashboard of decoding runs, as code: a saved view of the project that `logger=wandb` writes to.

    python scripts/wandb_dashboard.py --dry-run                      # print the view as JSON; needs no key, no network
    python scripts/wandb_dashboard.py --entity TEAM --project specdec   # save it; prints its address

Saving needs a W&B key (WANDB_API_KEY, or `wandb login`), because a view lives on the server. Runs that were logged
offline appear in it after `wandb sync results/wandb/offline-run-*`. Needs the extra: pip install 'specdec[dashboard]'.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

STAGES = ("prefill", "draft", "verify", "align", "schedule", "other")


def build(entity: str, project: str, name: str) -> Any:
    """The workspace: speed, equivalence, time, serving, samples."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    def bars(title: str, *metrics: str) -> Any:
        return wr.BarPlot(title=title, metrics=[wr.SummaryMetric(metric) for metric in metrics], max_runs_to_show=50)

    def against_batch(title: str, metric: str) -> Any:
        return wr.ScatterPlot(title=title, x=wr.Config("batch"), y=wr.SummaryMetric(metric), log_x=True)

    def over_rounds(title: str, *metrics: str, **options: Any) -> Any:
        return wr.LinePlot(title=title, x="Step", y=list(metrics), title_x="rounds", **options)

    sections = [
        ws.Section(
            name="Speed",
            is_open=True,
            panels=[
                against_batch("tokens/s against batch", "tokens_per_s"),
                against_batch("speed-up over plain continuous decoding", "speedup_vs_ar"),
                over_rounds("tokens/s while it ran", "tokens_per_s"),
                bars("tokens/s", "tokens_per_s"),
            ],
        ),
        ws.Section(
            name="Equivalence",
            is_open=True,
            panels=[
                bars("exact match with the target alone", "exact_match"),
                bars("divergences, and those that rounding explains", "num_divergences", "num_explained"),
                wr.WeavePanelSummaryTable(table_name="samples"),
            ],
        ),
        ws.Section(
            name="Acceptance",
            panels=[
                over_rounds("acceptance rate", "acceptance_rate"),
                over_rounds("tokens per verify call", "mean_acceptance_length"),
                against_batch("grouping rate against batch", "grouping_rate"),
                wr.WeavePanelSummaryTable(table_name="categories"),
            ],
        ),
        ws.Section(
            name="Time and memory",
            panels=[
                over_rounds("where the time goes", *(f"time/{s}_share" for s in STAGES), plot_type="stacked-area"),
                against_batch("alignment overhead against batch", "alignment_overhead"),
                bars("peak memory in bytes", "peak_memory_bytes"),
            ],
        ),
        ws.Section(
            name="Latency and serving",
            panels=[
                bars("completion latency, seconds", "latency_s.p50", "latency_s.p90", "latency_s.p99"),
                bars("time to first token, seconds", "ttft_s.p50", "ttft_s.p90", "ttft_s.p99"),
                bars("seconds per token", "token_s.p50", "token_s.p90", "token_s.p99"),
                bars("most rounds that passed a row over", "wait_rounds.max"),
            ],
        ),
    ]
    return ws.Workspace(entity=entity, project=project, name=name, sections=sections)


def specification(workspace: Any) -> dict[str, Any]:
    """The view as the server would get it."""
    document: dict[str, Any] = json.loads(workspace._to_model().model_dump_json(by_alias=True, exclude_none=True))
    return document


def main() -> None:
    """Print the dashboard, or save it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--entity", default=None, help="user or team; needed to save")
    parser.add_argument("--project", default="specdec", help="as in logger.project")
    parser.add_argument("--name", default="specdec dashboard", help="of the saved view")
    parser.add_argument("--dry-run", action="store_true", help="print the view as JSON and save nothing")
    arguments = parser.parse_args()
    try:
        workspace = build(arguments.entity or "entity", arguments.project, arguments.name)
    except ImportError as error:
        sys.exit(f"{error.name} is not installed: pip install 'specdec[dashboard]'")
    if arguments.dry_run:
        print(json.dumps(specification(workspace), indent=1))
        return
    if not arguments.entity:
        sys.exit("--entity is missing: give your W&B user or team, or --dry-run to print the view")
    import wandb

    try:
        print(workspace.save().url)
    except wandb.errors.UsageError:
        sys.exit("no W&B key: set WANDB_API_KEY or run `wandb login`, or use --dry-run to print the view")


if __name__ == "__main__":
    main()
