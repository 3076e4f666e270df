"""The settings by which several processes serve: replicas of the engine, or ranks that share one model.

They are made as those in `parallm_openai.settings`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from parallm_openai.setting_types import CommaSeparated, Flag, NonEmpty, Settings, flag_of


class ReplicaSettings(Settings):
    """Replicas of the engine behind one address, by Ray Serve."""

    replicas: Annotated[int | None, Flag("Replicas")] = Field(
        None,
        ge=1,
        le=1000,
        description="Serve by so many replicas of the engine, each with the model in a process of its own. Needs the "
        "extra ray. If not given, the engine runs in this process, without Ray.",
    )
    max_replicas: Annotated[int | None, Flag("Replicas")] = Field(
        None,
        ge=1,
        le=1000,
        description="Start up to so many replicas as requests queue, and end them again. If not given, their number is "
        "fixed.",
    )
    target_ongoing_requests: Annotated[float | None, Flag("Replicas")] = Field(
        None,
        gt=0,
        description="Requests, running or waiting, that a replica should have on average: with more, replicas are "
        "started. The maximum batch size if not given.",
    )
    replica_routing: Annotated[Literal["prefix", "least-loaded"], Flag("Replicas")] = Field(
        "prefix",
        description="Which replica gets a request: prefix prefers one that has computed the beginning of its prompt, "
        "then the one of its session; least-loaded looks at the load alone.",
    )

    @property
    def most(self) -> int:
        """So many replicas may run at the same time."""
        return self.max_replicas or self.replicas or 1

    @model_validator(mode="after")
    def _complete(self) -> ReplicaSettings:
        given = [name for name in type(self).model_fields if name != "replicas" and name in self.model_fields_set]
        if given and self.replicas is None:
            raise ValueError(f"{flag_of(given[0])}: needs --replicas")
        if self.max_replicas is not None and self.replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(f"--max-replicas: must be at least --replicas, which is {self.replicas}")
        if self.target_ongoing_requests is not None and self.max_replicas is None:
            raise ValueError("--target-ongoing-requests: needs --max-replicas")
        return self


class RankSettings(Settings):
    """Processes, on this or several machines, that share one model that is too large for one of them."""

    launch: Annotated[bool, Flag("Ranks")] = Field(
        False, description="Start this command on every host by mlx.launch, with a share of the model on each."
    )
    hosts: Annotated[CommaSeparated, Flag("Ranks", kind="addresses separated by commas")] = Field(
        (), description="The hosts to start on, by ssh. The first one serves. This machine alone if not given."
    )
    repeat_hosts: Annotated[int, Flag("Ranks", short="-n")] = Field(
        1, ge=1, le=64, description="Processes to start on each host."
    )
    hostfile: Annotated[NonEmpty | None, Flag("Ranks", kind="a .json file")] = Field(
        None, description="A file of mlx.distributed_config, which names the hosts and how they are connected."
    )
    backend: Annotated[Literal["ring", "jaccl", "jaccl-ring", "nccl", "mpi"] | None, Flag("Ranks")] = Field(
        None,
        description="How the hosts talk: ring by TCP, jaccl by RDMA over Thunderbolt, nccl between NVIDIA GPUs. "
        "If not given, what the hostfile says, else nccl with CUDA and ring without.",
    )
    starting_port: Annotated[int | None, Flag("Ranks")] = Field(
        None, ge=1, le=65535, description="The first of the ports by which the hosts talk; 32323 if not given."
    )
    pipeline: Annotated[bool, Flag("Ranks")] = Field(
        False,
        description="Give each process some of the layers, one after the other, instead of a part of every layer.",
    )
    shard_draft: Annotated[bool, Flag("Ranks")] = Field(
        False, description="Share the draft model as well. If not given, it is on the first host alone."
    )

    @model_validator(mode="after")
    def _complete(self) -> RankSettings:
        of_launch = ("hosts", "repeat_hosts", "hostfile", "backend", "starting_port")
        given = [name for name in of_launch if name in self.model_fields_set]
        if given and not self.launch:
            # llama.cpp's -n is something else.
            hint = "; the most tokens of an answer are --max-tokens" if given[0] == "repeat_hosts" else ""
            raise ValueError(f"{flag_of(given[0])}: needs --launch{hint}")
        if self.hostfile is not None and self.hosts:
            raise ValueError("--hosts: the file that --hostfile names has the hosts already")
        ports = self.repeat_hosts * max(1, len(self.hosts))
        if self.starting_port is not None and self.starting_port + ports - 1 > 65535:
            raise ValueError(f"--starting-port: {ports} ports are needed, and the last one is 65535")
        return self
