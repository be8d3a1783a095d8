"""The tutor: a model learns from few labelled rows and from answers to many prompts, and a gate publishes.

A round is a sequence of steps (tutor.py). Each writes its result to a file (results.py), so that a round that was
stopped continues at its step, to the same bytes:

    draw        several answers to each prompt, by the engine that trains          answers.py
                or one, by an encoder that learned the labelled rows               answers.py
    choose      those that a grader passes, that agree, or that the judge is       answers.py
                sure of
    train       the chosen answers together with the labelled rows                 tutor.py
    gate        held-out questions are answered through llama.cpp                  gate.py
    refit       the same training with the held-out rows as well                   tutor.py
    publish     the adapter becomes that of the folder                             folder.py

Sources: self-consistency (Wang et al. 2022, arXiv 2203.11171), self-training on agreement (Huang et al., 2210.11610).
"""
