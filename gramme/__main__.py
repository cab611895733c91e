"""The command `gramme`: hands over to `cli`, and turns what a user can mend into one line and exit code 2."""
import sys


def main() -> int:
    from gramme.cli.main import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
