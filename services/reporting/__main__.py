"""`python -m services.reporting [rebuild]`."""

from services.reporting.main import main

raise SystemExit(main())
