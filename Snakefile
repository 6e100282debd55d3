# The DAG: a cell per (model, task, method, seed), then the tables, the gate, and what was reproduced.
# config/ says what to run, profiles/ how. Every shell line is one `python -m leantune` command.
from leantune.dag import PATTERN, Jobs


configfile: "config/config.yaml"


JOBS = Jobs(config)
OUT = JOBS.config["output"]
ENVIRONMENT = "envs/leantune.yaml"


localrules:
    all,
    settings,
    tables,
    gate,


wildcard_constraints:
    key="[^/]+",
    model="[^/]+",
    task="[^/]+",
    method="[^/]+",
    seed=r"\d+",


rule all:
    input:
        passed=f"{OUT}/gate.ok",
        config=f"{OUT}/config.json",
    log:
        f"{OUT}/logs/reproduced.txt",
    conda:
        ENVIRONMENT
    shell:
        "python -m leantune gate --config {input.config} --published results | tee {log}"


rule cell:
    output:
        f"{OUT}/records/{PATTERN}.json",
    log:
        f"{OUT}/logs/{PATTERN}.log",
    benchmark:
        f"{OUT}/benchmarks/{PATTERN}.tsv"
    conda:
        lambda wildcards: JOBS[wildcards].environment
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: JOBS[wildcards].memory_mb * attempt,
        runtime=lambda wildcards, attempt: JOBS.config["timeout_minutes"] * attempt + 5,
        timeout=lambda wildcards, attempt: JOBS.config["timeout_minutes"] * attempt,
        attempt=lambda wildcards, attempt: attempt,
        attempts=1,  # a profile that sets `retries` sets this to retries + 1
    params:
        # Hashes, not input files: a touched file or a fresh clone reruns nothing, a changed one its own cells.
        hashes=lambda wildcards: JOBS[wildcards].hashes,
        arguments=lambda wildcards: JOBS[wildcards].arguments,
    shell:
        "python -m leantune run {params.arguments} --timeout {resources.timeout}"
        " --attempt {resources.attempt} --attempts {resources.attempts} --out {output} 2> {log}"


rule settings:
    output:
        f"{OUT}/config.json",
    log:
        f"{OUT}/logs/settings.log",
    params:
        config=JOBS.config,
    run:
        JOBS.save_config(output[0])


rule tables:
    input:
        config=f"{OUT}/config.json",
        records=JOBS.files(f"{OUT}/records/{{cell}}.json"),
    output:
        multiext(f"{OUT}/tables/", "cells.csv", "leaderboard.csv", "failures.csv"),
    log:
        f"{OUT}/logs/tables.log",
    conda:
        ENVIRONMENT
    shell:
        "python -m leantune tables --config {input.config} > {log} 2>&1"


rule gate:
    input:
        config=f"{OUT}/config.json",
        tables=f"{OUT}/tables/failures.csv",
    output:
        touch(f"{OUT}/gate.ok"),
    log:
        f"{OUT}/logs/gate.log",
    conda:
        ENVIRONMENT
    shell:
        "python -m leantune gate --config {input.config} > {log} 2>&1"
