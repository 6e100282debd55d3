"""The claims ledger: each paper's claims against what was measured."""
