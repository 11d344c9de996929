from services.ingest.main import main

raise SystemExit(main())
