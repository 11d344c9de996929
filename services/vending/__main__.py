from services.vending.main import main

raise SystemExit(main())
