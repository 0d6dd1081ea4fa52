"""What the pulumi engine runs."""

from infra import program

program.main()
