import typer

from parallm_openai.cli.bench import bench

typer.run(bench)
