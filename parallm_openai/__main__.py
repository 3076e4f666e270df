from parallm_openai.cli import main

main()
