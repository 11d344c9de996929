from tools.fleet.main import main

main()
