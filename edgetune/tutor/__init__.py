"""The tutor: a model that answers, judges and corrects its own answers, and learns from few labelled rows.

A round is a sequence of steps (loop.py), each a function from files to a file, so that a round that was stopped
continues with the step that it was at, to the same bytes:

    select      questions whose answers are sometimes right, and some that were never asked     questions.py
    generate    several answers to each, by the engine that trains                              answering.py
    evaluate    what each answer is worth, by the most trusted judge there is                   evaluating.py
    correct     wrong answers: a judgment that helps, a revision without the answer in view     correcting.py
    train       rows of what is trusted, weighted by how far, and earlier rows again            lesson.py
    search      how far to go from the published adapter towards the trained one                search.py
    gate        both served by llama.cpp and asked questions that neither learned               gate.py

After Tutorial Fine-Tuning, section 5 of "LLM Fine-Tuning: Concepts, Opportunities, and Challenges" (BDCC 2025, 9(4),
87): the model is learner and evaluator. What decides whether an adapter is published is outside of it.
"""
