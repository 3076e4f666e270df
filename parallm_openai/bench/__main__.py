import typer

from parallm_openai.bench.command import bench

typer.run(bench)
