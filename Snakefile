# The DAG: a cell per (model, task, method, seed), then the tables, the gate, and what was reproduced.
# config/ says what to run, profiles/ how. Every shell line is one `python -m leantune` command, and every word in it
# that comes from a config is quoted.
from leantune.workflow.jobs import PATTERN, TRIAL, Jobs
from leantune.spec.trials import CHOICE


configfile: "config/config.yaml"


JOBS = Jobs(config)
OUT = JOBS.config.output
FOOTPRINT = f"{OUT}/tables/footprint.csv"
CLAIMS = f"{OUT}/tables/claims.csv"
ENVIRONMENT = "envs/leantune.yaml"
TABLES = {  # of the records, with their category in `snakemake --report`
    "leaderboard": "Results",
    "decisions": "Results",
    "overall": "Results",
    "pareto": "Results",
    "budgets": "Results",
    "cells": "Records",
    "failures": "Checks",
    "calibration": "Checks",
}


report: "docs/captions/workflow.rst"


localrules:
    all,
    settings,
    footprint_settings,
    tables,
    gate,
    choice,


# Under a rate limit Snakemake sets a timer at every look at the queue, and that look sets the next one: after a thousand
# cells it looks a thousand times a second. Cells take seconds, so its default of 100 starts a second is dropped.
onstart:
    limit = workflow.scheduling_settings.max_jobs_per_timespan
    if limit is not None and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None


wildcard_constraints:
    key="[^/]+",
    model="[^/]+",
    task="[^/]+",
    method="[^/]+",
    seed=r"\d+",
    trial=r"\d+",


rule all:
    input:
        passed=f"{OUT}/gate.ok",
        config=f"{OUT}/config.json",
        footprint=FOOTPRINT if JOBS.config.footprint else [],
        claims=CLAIMS if JOBS.config.claims else [],
        report=f"{OUT}/report/index.html",
        figures=f"{OUT}/figures",
    log:
        f"{OUT}/logs/reproduced.txt",
    conda:
        ENVIRONMENT
    shell:
        "python -m leantune gate --config {input.config:q} --published results | tee {log:q}"


rule cell:
    input:
        JOBS.choices,  # of tuned methods: what their trials chose
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
        runtime=lambda wildcards, attempt: JOBS.config.timeout_minutes * attempt + 5,
        timeout=lambda wildcards, attempt: JOBS.config.timeout_minutes * attempt,
        attempt=lambda wildcards, attempt: attempt,
        attempts=1,  # a profile that sets `retries` sets this to retries + 1
        limit_mb=0,  # a profile may say what one cell may need; 0: what the machine has
        gpu=lambda wildcards: JOBS[wildcards].gpus,
    params:
        # Hashes, not input files: a touched file or a fresh clone reruns nothing, a changed one its own cells.
        hashes=lambda wildcards: JOBS[wildcards].hashes,
        arguments=lambda wildcards: JOBS[wildcards].arguments,
    shell:
        "python -m leantune run {params.arguments} --timeout {resources.timeout}"
        " --attempt {resources.attempt} --attempts {resources.attempts}"
        " --limit-mb {resources.limit_mb} --tuning {input:q} --out {output:q} > {log:q} 2>&1"


use rule cell as trial with:
    input:
        [],
    output:
        f"{OUT}/tuning/{TRIAL}.json",
    log:
        f"{OUT}/logs/{TRIAL}.log",
    benchmark:
        f"{OUT}/benchmarks/{TRIAL}.tsv"


rule choice:
    input:
        JOBS.trials,
    output:
        f"{OUT}/{CHOICE}",
    log:
        f"{OUT}/logs/{{key}}/{{model}}/{{task}}/{{method}}/chosen.log",
    conda:
        ENVIRONMENT
    shell:
        "python -m leantune choose {input:q} --out {output:q} 2> {log:q}"


# Step times, with the machine to itself: it takes every core.
rule timing:
    input:
        lambda words: [
            f"{OUT}/{f}" for f in JOBS.timing[f"{words.model}/{words.task}"].choices
        ],
    output:
        f"{OUT}/timing/{{model}}/{{task}}.json",
    log:
        f"{OUT}/logs/timing/{{model}}/{{task}}.log",
    conda:
        ENVIRONMENT
    threads: workflow.resource_settings.cores or 1  # none is given for --report
    resources:
        mem_mb=lambda words: JOBS.timing[f"{words.model}/{words.task}"].memory_mb,
        gpu=lambda words: JOBS.timing[f"{words.model}/{words.task}"].gpus,
        runtime=240,
    params:
        hashes=lambda words: JOBS.timing[f"{words.model}/{words.task}"].hashes,
        arguments=lambda words: JOBS.timing[f"{words.model}/{words.task}"].arguments,
    shell:
        "python -m leantune compare {params.arguments} --tuning {input:q} --out {output:q} 2> {log:q}"


rule settings:
    output:
        f"{OUT}/config.json",
    log:
        f"{OUT}/logs/settings.log",
    params:
        config=JOBS.config.resolved(),
    run:
        JOBS.save_config(output[0])


rule tables:
    input:
        config=f"{OUT}/config.json",
        records=JOBS.files(f"{OUT}/records/{{cell}}.json"),
        timing=[f"{OUT}/timing/{name}.json" for name in JOBS.timing],
    output:
        [
            report(
                f"{OUT}/tables/{name}.csv",
                caption=f"docs/captions/{name}.rst",
                category=category,
                labels={"table": name},
            )
            for name, category in TABLES.items()
        ],
    log:
        f"{OUT}/logs/tables.log",
    conda:
        ENVIRONMENT
    shell:
        "python -m leantune tables --config {input.config:q} > {log:q} 2>&1"


# A file of its own: the table must not be made again because another key of the config changed.
rule footprint_settings:
    output:
        f"{OUT}/footprint.json",
    log:
        f"{OUT}/logs/footprint_settings.log",
    params:
        footprint=JOBS.config.resolved()["footprint"],
    run:
        JOBS.save_config(output[0])


rule footprint:
    input:
        config=f"{OUT}/footprint.json",
    output:
        report(
            FOOTPRINT,
            caption="docs/captions/footprint.rst",
            category="Predictions",
            labels={"table": "footprint"},
        ),
    log:
        f"{OUT}/logs/footprint.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        hashes=JOBS.footprint,
    shell:
        "python -m leantune footprint --config {input.config:q} > {log:q} 2>&1"


rule claims:
    input:
        config=f"{OUT}/config.json",
        tables=f"{OUT}/tables/leaderboard.csv",
    output:
        report(
            CLAIMS,
            caption="docs/captions/claims.rst",
            category="Claims",
            labels={"table": "claims"},
        ),
    log:
        f"{OUT}/logs/claims.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=60,
    params:
        hashes=JOBS.claims,
    shell:
        "python -m leantune claims --config {input.config:q} > {log:q} 2>&1"


rule report:
    input:
        tables=f"{OUT}/tables/leaderboard.csv",
        footprint=FOOTPRINT if JOBS.config.footprint else [],
        claims=CLAIMS if JOBS.config.claims else [],
    output:
        f"{OUT}/report/index.html",
    log:
        f"{OUT}/logs/report.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        results=subpath(input.tables, ancestor=2),
    shell:
        "python -m leantune report --results {params.results:q} > {log:q} 2>&1"


rule figures:
    input:
        page=f"{OUT}/report/index.html",
    output:
        report(
            directory(f"{OUT}/figures"),
            patterns=["{name}.svg"],
            caption="docs/captions/figures.rst",
            category="Figures",
            labels={"figure": "{name}"},
        ),
    log:
        f"{OUT}/logs/figures.log",
    conda:
        ENVIRONMENT
    threads: 1
    resources:
        mem_mb=2000,
        runtime=30,
    params:
        results=subpath(input.page, ancestor=2),
    shell:
        "python -m leantune report --results {params.results:q} --figures {output:q} > {log:q} 2>&1"


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
        "python -m leantune gate --config {input.config:q} > {log:q} 2>&1"
