"""Makes ``python -m infsa_bench`` the same as ``infsa-bench``, for trees that are not installed."""

from infsa_bench.cli import main

if __name__ == "__main__":
    main()
