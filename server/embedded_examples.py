"""Worked examples for the embedded model: kinds of task, and for each the code that answers them.

Written as the chat turns that a 135M model copies from; the kind nearest to a task is shown to it.
"""

from typing import NamedTuple


class Example(NamedTuple):
    task: str
    code: str


EXAMPLES: dict[str, tuple[Example, ...]] = {
    "add": (
        Example("What is 250 plus 17?", "250 + 17"),
        Example("What is 31 + 48?", "31 + 48"),
        Example("Add 3.5 and 1.2", "3.5 + 1.2"),
        Example("What is the sum of 19 and 64?", "19 + 64"),
        Example("Tom has 14 pens and gets 5 more. How many pens has he?", "14 + 5"),
    ),
    "subtract": (
        Example("What is 63 minus 80?", "63 - 80"),
        Example("What is 95 - 12?", "95 - 12"),
        Example("Subtract 15 from 40.", "40 - 15"),
        Example("What is the difference between 90 and 35?", "90 - 35"),
        Example("Ann had 20 eggs and lost 6. How many eggs are left?", "20 - 6"),
        Example("Take 8 away from 31", "31 - 8"),
    ),
    "multiply": (
        Example("What is 12 * 34?", "12 * 34"),
        Example("What is 9 times 13?", "9 * 13"),
        Example("Multiply 7 and 52.", "7 * 52"),
        Example("What is the product of 25 and 4?", "25 * 4"),
        Example("What is 2.5 x 6?", "2.5 * 6"),
    ),
    "divide": (
        Example("What is 72 divided by 9?", "72 / 9"),
        Example("Compute 90 / 4", "90 / 4"),
        Example("Divide 45 by 5.", "45 / 5"),
        Example("What is the quotient of 56 and 7?", "56 / 7"),
        Example("Split 60 among 4", "60 / 4"),
    ),
    "floor": (
        Example("What is 31 // 8?", "31 // 8"),
        Example("Integer division of 50 by 7", "50 // 7"),
        Example("Compute 99 // 10", "99 // 10"),
        Example("How many times does 6 go into 45?", "45 // 6"),
    ),
    "remainder": (
        Example("What is the remainder when 47 is divided by 6?", "47 % 6"),
        Example("What is 26 % 7?", "26 % 7"),
        Example("What is 38 mod 5?", "38 % 5"),
        Example("What remainder does 85 divided by 8 leave?", "85 % 8"),
    ),
    "power": (
        Example("What is 5 to the power of 4?", "5 ** 4"),
        Example("What is 2 ** 8?", "2 ** 8"),
        Example("Raise 3 to the 6th power.", "3 ** 6"),
        Example("What is 10 ^ 3?", "10 ** 3"),
    ),
    "square": (
        Example("What is 12 squared?", "12 ** 2"),
        Example("What is the square of 21?", "21 ** 2"),
        Example("Square 8", "8 ** 2"),
    ),
    "cube": (
        Example("What is 7 cubed?", "7 ** 3"),
        Example("What is the cube of 11?", "11 ** 3"),
        Example("Cube 6", "6 ** 3"),
    ),
    "root": (
        Example("What is the square root of 81?", "81 ** 0.5"),
        Example("Square root of 400", "400 ** 0.5"),
        Example("sqrt(49)", "49 ** 0.5"),
        Example("Compute the root of 2", "2 ** 0.5"),
    ),
    "factorial": (
        Example("What is the factorial of 6?", "math.factorial(6)"),
        Example("Compute 4!", "math.factorial(4)"),
        Example("8 factorial", "math.factorial(8)"),
        Example("3! = ?", "math.factorial(3)"),
    ),
    "percent": (
        Example("What is 30% of 70?", "70 * 30 / 100"),
        Example("What is 5 percent of 300?", "300 * 5 / 100"),
        Example("Compute 12% of 90", "90 * 12 / 100"),
        Example("25 percent of 40", "40 * 25 / 100"),
    ),
    "parity": (
        Example("Is 18 even or odd?", '"even" if 18 % 2 == 0 else "odd"'),
        Example("Is 31 odd or even?", '"even" if 31 % 2 == 0 else "odd"'),
        Example("Even or odd: 54", '"even" if 54 % 2 == 0 else "odd"'),
    ),
    "even": (
        Example("Is 36 even?", "36 % 2 == 0"),
        Example("Is 15 an even number?", "15 % 2 == 0"),
        Example("Check if 62 is even", "62 % 2 == 0"),
    ),
    "odd": (
        Example("Is 25 an odd number?", "25 % 2 == 1"),
        Example("Is 48 odd?", "48 % 2 == 1"),
        Example("Check if 33 is odd", "33 % 2 == 1"),
    ),
    "divisible": (
        Example("Is 84 divisible by 6?", "84 % 6 == 0"),
        Example("Is 50 a multiple of 8?", "50 % 8 == 0"),
        Example("Can 72 be divided by 9 evenly?", "72 % 9 == 0"),
    ),
    "gcd": (
        Example("What is the greatest common divisor of 12 and 18?", "math.gcd(12, 18)"),
        Example("gcd of 40 and 64", "math.gcd(40, 64)"),
        Example("What is the highest common factor of 9 and 15?", "math.gcd(9, 15)"),
    ),
    "lcm": (
        Example("What is the least common multiple of 4 and 6?", "math.lcm(4, 6)"),
        Example("What is the lowest common multiple of 5 and 9?", "math.lcm(5, 9)"),
        Example("lcm of 8 and 12", "math.lcm(8, 12)"),
    ),
    "prime": (
        Example("Is 29 prime?", "all(29 % d for d in range(2, 29))"),
        Example("Is 51 a prime number?", "all(51 % d for d in range(2, 51))"),
        Example("Check if 77 is prime.", "all(77 % d for d in range(2, 77))"),
        Example("Is the number 103 a prime?", "all(103 % d for d in range(2, 103))"),
    ),
    "nth prime": (
        Example(
            "What is the 6th prime number?",
            "[n for n in range(2, 600) if all(n % d for d in range(2, n))][6 - 1]",
        ),
        Example(
            "Which is the 20th prime?",
            "[n for n in range(2, 600) if all(n % d for d in range(2, n))][20 - 1]",
        ),
        Example(
            "What is the 3rd prime?",
            "[n for n in range(2, 600) if all(n % d for d in range(2, n))][3 - 1]",
        ),
        Example(
            "Tell me the 12th prime number.",
            "[n for n in range(2, 600) if all(n % d for d in range(2, n))][12 - 1]",
        ),
    ),
    "count primes": (
        Example(
            "How many primes are there below 50?",
            "len([n for n in range(2, 50) if all(n % d for d in range(2, n))])",
        ),
        Example(
            "How many primes are there below 400?",
            "len([n for n in range(2, 400) if all(n % d for d in range(2, n))])",
        ),
        Example(
            "How many primes are there below 120?",
            "len([n for n in range(2, 120) if all(n % d for d in range(2, n))])",
        ),
        Example(
            "How many primes are there below 1000?",
            "len([n for n in range(2, 1000) if all(n % d for d in range(2, n))])",
        ),
        Example(
            "How many primes are there below 10?",
            "len([n for n in range(2, 10) if all(n % d for d in range(2, n))])",
        ),
        Example(
            "How many primes are there below 150?",
            "len([n for n in range(2, 150) if all(n % d for d in range(2, n))])",
        ),
        Example(
            "Number of prime numbers under 200",
            "len([n for n in range(2, 200) if all(n % d for d in range(2, n))])",
        ),
        Example(
            "How many prime numbers are smaller than 30?",
            "len([n for n in range(2, 30) if all(n % d for d in range(2, n))])",
        ),
    ),
    "list primes": (
        Example(
            "List the primes below 15.",
            "[n for n in range(2, 15) if all(n % d for d in range(2, n))]",
        ),
        Example(
            "Show all primes less than 24.",
            "[n for n in range(2, 24) if all(n % d for d in range(2, n))]",
        ),
        Example(
            "What are the prime numbers under 10?",
            "[n for n in range(2, 10) if all(n % d for d in range(2, n))]",
        ),
    ),
    "list primes up to": (
        Example(
            "List the prime numbers up to 12.",
            "[n for n in range(2, 12 + 1) if all(n % d for d in range(2, n))]",
        ),
        Example(
            "Show all primes from 1 to 35.",
            "[n for n in range(2, 35 + 1) if all(n % d for d in range(2, n))]",
        ),
        Example(
            "What are the primes up to 8?",
            "[n for n in range(2, 8 + 1) if all(n % d for d in range(2, n))]",
        ),
    ),
    "count letter": (
        Example("How many p in pineapple?", '"pineapple".count("p")'),
        Example("How many times does the letter n appear in dinner?", '"dinner".count("n")'),
        Example("How many l are in parallel?", '"parallel".count("l")'),
        Example("Number of i in the word milling?", '"milling".count("i")'),
        Example("How many u's does unusual have?", '"unusual".count("u")'),
    ),
    "reverse": (
        Example("Reverse the word market.", '"market"[::-1]'),
        Example("Spell the word silver backwards.", '"silver"[::-1]'),
        Example("Turn the word forest around.", '"forest"[::-1]'),
        Example("Write doctor backwards", '"doctor"[::-1]'),
    ),
    "length": (
        Example("How many letters are in the word orange?", 'len("orange")'),
        Example("What is the length of the word computer?", 'len("computer")'),
        Example("Number of letters in teacher?", 'len("teacher")'),
        Example("Length of the word cat", 'len("cat")'),
    ),
    "upper": (
        Example("Write the word river in capital letters.", '"river".upper()'),
        Example("Make the word stone upper case.", '"stone".upper()'),
        Example("Capitalize all letters of bread.", '"bread".upper()'),
    ),
    "lower": (
        Example("Write the word HOUSE in small letters.", '"HOUSE".lower()'),
        Example("Make GREEN lower case.", '"GREEN".lower()'),
    ),
    "palindrome": (
        Example("Is noon a palindrome?", '"noon" == "noon"[::-1]'),
        Example("Is the word table a palindrome?", '"table" == "table"[::-1]'),
        Example("Check if civic is a palindrome", '"civic" == "civic"[::-1]'),
    ),
    "sum range": (
        Example("What is the sum of the numbers from 1 to 10?", "sum(range(1, 10 + 1))"),
        Example("Add all integers from 7 to 22.", "sum(range(7, 22 + 1))"),
        Example("Sum 3 through 60", "sum(range(3, 60 + 1))"),
        Example("Sum of integers between 4 and 500", "sum(range(4, 500 + 1))"),
    ),
    "sum squares": (
        Example(
            "What is the sum of the squares from 1 to 8?", "sum([n ** 2 for n in range(1, 8 + 1)])"
        ),
        Example("Add the squares of 2 to 9.", "sum([n ** 2 for n in range(2, 9 + 1)])"),
        Example("Sum of the squares from 3 to 20", "sum([n ** 2 for n in range(3, 20 + 1)])"),
        Example("Sum of the squares from 1 to 14?", "sum([n ** 2 for n in range(1, 14 + 1)])"),
        Example("Sum of squares of the first 5 numbers", "sum([n ** 2 for n in range(1, 5 + 1)])"),
    ),
    "sum even": (
        Example(
            "What is the sum of the even numbers from 1 to 40?",
            "sum([n for n in range(1, 40 + 1) if n % 2 == 0])",
        ),
        Example(
            "What is the sum of all even numbers from 2 to 60?",
            "sum([n for n in range(2, 60 + 1) if n % 2 == 0])",
        ),
        Example(
            "Add the even integers from 4 to 28.",
            "sum([n for n in range(4, 28 + 1) if n % 2 == 0])",
        ),
    ),
    "sum odd": (
        Example("Sum of odd numbers up to 60", "sum([n for n in range(1, 60 + 1) if n % 2 == 1])"),
        Example(
            "Add the odd integers from 1 to 25.", "sum([n for n in range(1, 25 + 1) if n % 2 == 1])"
        ),
    ),
    "sum multiples": (
        Example(
            "What is the sum of the multiples of 3 below 40?",
            "sum([n for n in range(1, 40) if n % 3 == 0])",
        ),
        Example(
            "Sum of all multiples of 4 below 90", "sum([n for n in range(1, 90) if n % 4 == 0])"
        ),
    ),
    "count multiples": (
        Example(
            "How many numbers below 100 are divisible by 7?",
            "len([n for n in range(1, 100) if n % 7 == 0])",
        ),
        Example(
            "How many multiples of 6 are below 80?", "len([n for n in range(1, 80) if n % 6 == 0])"
        ),
    ),
    "hours to minutes": (
        Example("How many minutes are in 4 hours?", "4 * 60"),
        Example("Convert 9 hours to minutes.", "9 * 60"),
        Example("How many minutes is 1.5 hours?", "1.5 * 60"),
    ),
    "minutes to seconds": (
        Example("How many seconds are in 3 minutes?", "3 * 60"),
        Example("Convert 12 minutes to seconds.", "12 * 60"),
        Example("Seconds in 20 minutes", "20 * 60"),
    ),
    "hours to seconds": (
        Example("How many seconds are in 5 hours?", "5 * 3600"),
        Example("Convert 8 hours to seconds.", "8 * 3600"),
        Example("Seconds in 11 hours", "11 * 3600"),
    ),
    "minutes to hours": (
        Example("Convert 90 minutes to hours.", "90 / 60"),
        Example("How many hours are 150 minutes?", "150 / 60"),
        Example("240 minutes in hours", "240 / 60"),
    ),
    "seconds to minutes": (
        Example("Convert 180 seconds to minutes.", "180 / 60"),
        Example("How many minutes are 420 seconds?", "420 / 60"),
    ),
    "days to hours": (
        Example("How many hours are in 2 days?", "2 * 24"),
        Example("Convert 9 days to hours.", "9 * 24"),
        Example("Hours in 12 days", "12 * 24"),
    ),
    "hours to days": (
        Example("Convert 72 hours to days.", "72 / 24"),
        Example("How many days are 48 hours?", "48 / 24"),
    ),
    "weeks to days": (
        Example("Convert 5 weeks to days.", "5 * 7"),
        Example("How many days is 8 weeks?", "8 * 7"),
        Example("Days in 2 weeks", "2 * 7"),
    ),
    "years to months": (
        Example("How many months are in 4 years?", "4 * 12"),
        Example("Convert 7 years to months.", "7 * 12"),
    ),
    "km to m": (
        Example("Convert 7 kilometers to meters.", "7 * 1000"),
        Example("How many meters are in 3 km?", "3 * 1000"),
        Example("Convert 2 km to m.", "2 * 1000"),
    ),
    "m to km": (
        Example("Convert 2500 m to km.", "2500 / 1000"),
        Example("How many kilometers are 800 meters?", "800 / 1000"),
        Example("Convert 4000 meters to kilometers.", "4000 / 1000"),
    ),
    "m to cm": (
        Example("Convert 4 m to cm.", "4 * 100"),
        Example("Convert 7 meters to centimeters.", "7 * 100"),
        Example("How many centimeters is 2 meters?", "2 * 100"),
    ),
    "cm to m": (
        Example("Convert 250 cm to m.", "250 / 100"),
        Example("How many meters are 600 centimeters?", "600 / 100"),
    ),
    "kg to g": (
        Example("How many grams are in 3 kg?", "3 * 1000"),
        Example("Convert 6 kilograms to grams.", "6 * 1000"),
        Example("Convert 1.5 kg to g.", "1.5 * 1000"),
    ),
    "g to kg": (
        Example("Convert 800 g to kg.", "800 / 1000"),
        Example("Convert 5000 grams to kilograms.", "5000 / 1000"),
        Example("3200 grams in kilograms", "3200 / 1000"),
    ),
    "c to f": (
        Example("Convert 30 degrees Celsius to Fahrenheit.", "30 * 9 / 5 + 32"),
        Example("What is 15 C in F?", "15 * 9 / 5 + 32"),
        Example("Turn 8 degrees Celsius into Fahrenheit", "8 * 9 / 5 + 32"),
    ),
    "f to c": (
        Example("What is 86 F in C?", "(86 - 32) * 5 / 9"),
        Example("Turn 68 degrees Fahrenheit into Celsius", "(68 - 32) * 5 / 9"),
        Example("104 Fahrenheit to Celsius", "(104 - 32) * 5 / 9"),
    ),
    "max": (
        Example("What is the largest of 3, 17, 8 and 11?", "max([3, 17, 8, 11])"),
        Example("Which number is bigger: 42 or 24?", "max([42, 24])"),
        Example("Find the maximum of 5, 9, 2.", "max([5, 9, 2])"),
        Example("What is the greatest number in [6, 1, 13]?", "max([6, 1, 13])"),
    ),
    "min": (
        Example("Find the minimum of 9, 4, 6.", "min([9, 4, 6])"),
        Example("What is the smallest of 15, 2 and 30?", "min([15, 2, 30])"),
        Example("Which is the lowest: 7, 3 or 12?", "min([7, 3, 12])"),
        Example("Which is smaller, 60 or 16?", "min([60, 16])"),
    ),
    "sort": (
        Example("Sort 8, 3, 5, 1 in ascending order.", "sorted([8, 3, 5, 1])"),
        Example("Sort the numbers 12, 4, 30.", "sorted([12, 4, 30])"),
        Example("Order 6, 2, 9 from smallest to largest.", "sorted([6, 2, 9])"),
    ),
    "sort down": (
        Example("Sort 2, 9, 4 in descending order.", "sorted([2, 9, 4], reverse=True)"),
        Example("Sort 5, 50, 25, biggest first.", "sorted([5, 50, 25], reverse=True)"),
        Example("Order 7, 3, 11, 1 from highest to lowest.", "sorted([7, 3, 11, 1], reverse=True)"),
        Example("Sort 6, 1, 3 in descending order.", "sorted([6, 1, 3], reverse=True)"),
    ),
    "sum list": (
        Example("What is the sum of 4, 6 and 13?", "sum([4, 6, 13])"),
        Example("Add up 2, 8, 5, 1.", "sum([2, 8, 5, 1])"),
        Example("What is the sum of 10, 4, 3 and 7?", "sum([10, 4, 3, 7])"),
        Example("What is 7 + 12 + 30?", "sum([7, 12, 30])"),
    ),
    "average": (
        Example("What is the average of 7, 9 and 20?", "sum([7, 9, 20]) / len([7, 9, 20])"),
        Example("What is the mean of 2, 4, 6, 8?", "sum([2, 4, 6, 8]) / len([2, 4, 6, 8])"),
        Example("Average of 3 and 5", "sum([3, 5]) / len([3, 5])"),
    ),
    "greeting": (
        Example("Hi!", '"Hello! How can I help you today?"'),
        Example("Good evening", '"Good evening! How can I help you?"'),
        Example("Hello, friend", '"Hello! How can I help you?"'),
        Example("How are you?", '"I am fine, thank you. How can I help you?"'),
        Example("Hey, nice to meet you", '"Hello! Nice to meet you too."'),
    ),
    "thanks": (
        Example("Thanks!", '"You are welcome!"'),
        Example("Bye", '"Goodbye! Have a nice day."'),
        Example("Thank you very much for your help", '"You are welcome! I am glad to help."'),
    ),
    "self": (
        Example("Who are you?", '"I am a small assistant that answers with Python."'),
        Example(
            "What can you do?", '"I am an assistant. I calculate and answer simple questions."'
        ),
        Example("What is your name?", '"My name is Smol, and I am an assistant."'),
    ),
    "fact": (
        Example("What is the capital of Germany?", '"The capital of Germany is Berlin."'),
        Example("What color is grass?", '"Grass is green."'),
        Example("What is the largest ocean?", '"The largest ocean is the Pacific Ocean."'),
        Example("Who wrote Hamlet?", '"William Shakespeare wrote Hamlet."'),
        Example("Which animal barks?", '"Dogs bark."'),
    ),
}
