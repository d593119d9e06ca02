"""``python -m jaxvision.cli`` is the command ``jaxvision``."""

from jaxvision.cli import run_and_exit

if __name__ == "__main__":
    run_and_exit()
