from services.control.main import main

raise SystemExit(main())
