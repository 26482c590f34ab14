"""The same server on as many machines as Ray has: an application of Ray Serve.

    application.py   what is deployed: an ingress, and a deployment for each model
    plan.py          models and Ray's options for each, of a file or of Ray's `LLMConfig`s; pure
    llm_config.py    one of Ray's `LLMConfig`s, as a model of ours; pure
    serve_config.py  the file that `serve run` and `serve deploy` take, and Anyscale's; pure
    ingress.py       a replica of the ingress: the application of `sightline serve`, whose engines are handles
    handle_engine.py an `Engine` that asks the replicas of a deployment, and another replica where one is lost
    replica.py       a replica of a model: any engine, in its child process as ever
    meter.py         what API keys may ask for, counted once for all ingresses
    refit.py         pictures that were made ready for the model that was there before; pure
    answering.py     which replica makes an answer
    ray_llm.py       a replica in which `ray.serve.llm` runs vLLM, where that is installed
    window.py        how far a replica may run ahead of who reads its answer; pure
    affinity.py      which replica is asked: the one that has seen the picture, unless it is hot; pure
    router.py        the same, as Ray asks for it
    simulation/      what that is worth, with 10 to 1,000 replicas
    scaling.py       how many replicas the work that waits needs
    post.py          the way back of an answer: straight to the ingress, beside Ray
    parcels.py       requests and answers as bytes: the frames of `engines/worker`

One request: the ingress admits it, looks at its pictures and counts, with the same `Service` as on one machine; its
engine is a handle, which chooses a replica; events come back one by one, beside Ray. Nothing of ours is pickled between
processes: what they tell each other are bytes. Only `application.py`, `ingress.py` and `router.py` import Ray
(`ray_llm.py` when it is asked for), so that the rest is tested without.
"""

from __future__ import annotations

from typing import Any


def app(args: dict[str, Any]) -> Any:
    """`import_path: sightline.cluster:app`. See `application.app`."""
    from sightline.cluster import application

    return application.app(args)


def build_openai_app(args: dict[str, Any]) -> Any:
    """`import_path: sightline.cluster:build_openai_app`. See `application.build_openai_app`."""
    from sightline.cluster import application

    return application.build_openai_app(args)


__all__ = ["app", "build_openai_app"]
