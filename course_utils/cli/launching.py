"""`course launch-config`: the configurations for `accelerate launch`, where they lie, and copies to change."""

from __future__ import annotations

from typing import Annotated

import typer


def launch_config(
    name: Annotated[str, typer.Argument(help="one_gpu, two_gpus ...; without a name: what there is.")] = "",
    copy: Annotated[str, typer.Option(metavar="FOLDER", help="Put a copy there, to be changed.")] = "",
) -> None:
    """Where a configuration for `accelerate launch` lies: accelerate launch --config_file $(course launch-config two_gpus) ..."""
    from course_utils import launch

    if not name:
        for each in launch.NAMES:
            typer.echo(f"{each:18} {launch.about(each)}")
        return
    typer.echo(launch.copy(name, copy) if copy else launch.path(name))
