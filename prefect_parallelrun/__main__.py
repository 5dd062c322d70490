"""`python -m prefect_parallelrun` is `parallelrun`."""

from prefect_parallelrun.cli import main

if __name__ == "__main__":
    main()
