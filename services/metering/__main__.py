from services.metering.main import main

raise SystemExit(main())
