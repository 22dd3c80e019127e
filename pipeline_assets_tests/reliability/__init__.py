"""What is attacked, and who judges it. `docs/reliability.md` has the table of it."""
