import static java.nio.charset.StandardCharsets.UTF_8;
import static java.nio.file.StandardOpenOption.*;

import java.net.*;
import java.net.http.*;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.channels.*;
import java.nio.file.*;
import java.time.*;
import java.time.format.DateTimeFormatter;
import java.util.*;
import java.util.concurrent.*;
import java.util.regex.*;
import java.util.stream.Collectors;

/** One refund, and every end that it can have: java Refund.java URL PROVIDER PAYMENT_ID VALUE CURRENCY
 * URL is the gateway's origin. REFUND_KEYS names the file that keeps the keys. The last answer goes to stdout.
 * Exit status: 0 refunded, 1 certainly not refunded, 2 wrong usage, 3 still open: run it again. Why so: docs/call-it.md */
public class Refund {
    static final long RUN = 55_000, CALL = 35_000, PAUSE = 3_000; // Milliseconds. The gateway gives a provider 30 s.
    static final Duration REPEATABLE = Duration.ofHours(23); // No provider forgets a key within 24 hours.
    static final Set<String> WITHOUT_KEYS = Set.of("bbmsl"); // After no answer: look up, do not repeat.
    static final HttpClient CLIENT = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();

    static String utc(Duration after) { // As the gateway writes times: such texts sort by time.
        return Instant.ofEpochSecond(Instant.now().plus(after).getEpochSecond()).toString();
    }

    /** A word of an answer, or of what is kept. Java has no JSON; a quote within a text has a backslash before it. */
    static String word(String json, String member) {
        Matcher found = Pattern.compile("\"" + member + "\"\\s*:\\s*\"?([\\w.:-]+)").matcher(json);
        return found.find() ? found.group(1) : "";
    }

    static String quoted(String text) {
        return '"' + text.replace("\\", "\\\\").replace("\"", "\\\"") + '"';
    }

    static Map<String, String> read(Path path) throws Exception {
        String text = Files.exists(path) ? Files.readString(path) : "";
        Matcher found = Pattern.compile("(\"(?:[^\"\\\\]|\\\\.)*\")\\s*:\\s*(\\{[^{}]*\\})").matcher(text);
        Map<String, String> keys = found.results().collect(Collectors.toMap(kept -> kept.group(1), kept -> kept.group(2)));
        if (text.split("\"key\"").length != keys.size() + 1) throw new IllegalStateException(path + " cannot be read");
        return keys;
    }

    static void save(Path path, Map<String, String> keys) throws Exception { // All or nothing, also where all ends here.
        String text = keys.entrySet().stream().map(kept -> kept.getKey() + ": " + kept.getValue())
            .collect(Collectors.joining(",\n ", "{\n ", "\n}\n"));
        Path draft = Path.of(path + ".new");
        Files.writeString(draft, text, CREATE, TRUNCATE_EXISTING, WRITE, SYNC);
        Files.move(draft, path, StandardCopyOption.ATOMIC_MOVE);
        FileChannel.open(path.toAbsolutePath().getParent(), READ).force(true);
    }

    static long pause(String after) {
        try {
            if (after.matches("\\d{1,9}")) return Long.parseLong(after) * 1000;
            Instant date = DateTimeFormatter.RFC_1123_DATE_TIME.parse(after, Instant::from);
            return Duration.between(Instant.now(), date).toMillis();
        } catch (DateTimeException none) {
            return PAUSE;
        }
    }

    static int refund(Path path, String origin, String provider, String payment, String value, String currency)
            throws Exception {
        Map<String, String> keys = read(path);
        String name = quoted(String.join(" ", provider, payment, value, currency));
        String kept = keys.getOrDefault(name, String.format("{\"key\": \"%s\", \"sent\": 0, \"until\": \"%s\"}",
            UUID.randomUUID(), utc(REPEATABLE)));
        String key = word(kept, "key"), until = word(kept, "until"), status = "", last = "null";
        int sent = Integer.parseInt(word(kept, "sent"));
        String body = String.format("{\"provider\": %s, \"payment\": {\"id\": %s}, \"amount\": {\"value\": %s, \"currency\": %s}}",
            quoted(provider), quoted(payment), quoted(value), quoted(currency));
        String query = String.format("?provider=%s&payment_id=%s&key=%s", URLEncoder.encode(provider, UTF_8),
            URLEncoder.encode(payment, UTF_8), key);
        URI url = URI.create(origin).resolve("/v1/refunds");
        HttpRequest get = HttpRequest.newBuilder(URI.create(url + query)).build();
        HttpRequest post = HttpRequest.newBuilder(url).POST(BodyPublishers.ofString(body))
            .header("Content-Type", "application/json").header("Idempotency-Key", key).build();
        String byKey = WITHOUT_KEYS.contains(provider) ? "look_up" : "same_key";
        boolean look = sent > 0 && (byKey.equals("look_up") || utc(Duration.ZERO).compareTo(until) > 0), isFinal = false;
        long wait = 0, end = System.nanoTime() / 1_000_000 + RUN;
        while (!isFinal && System.nanoTime() / 1_000_000 + wait < end) {
            Thread.sleep(wait);
            if (!look) sent++;
            keys.put(name, String.format("{\"key\": \"%s\", \"sent\": %d, \"until\": \"%s\"}", key, sent, until));
            save(path, keys); // Before the call: if this run is killed from here on, the call may have refunded.
            String answer = "", after = "", replayed = "";
            try {
                HttpResponse<String> reply = CLIENT.sendAsync(look ? get : post, BodyHandlers.ofString())
                    .get(Math.min(CALL, end - System.nanoTime() / 1_000_000), TimeUnit.MILLISECONDS);
                after = reply.headers().firstValue("Retry-After").orElse("");
                replayed = reply.headers().firstValue("Idempotency-Replayed").orElse("");
                boolean ours = !word(reply.body(), "outcome").isEmpty() || word(reply.body(), "provider").equals(provider);
                answer = ours ? reply.body() : ""; // Else it is a proxy's.
            } catch (ExecutionException | TimeoutException none) { // No answer, or not all of it.
            }
            if (!answer.isEmpty()) last = answer;
            status = word(answer, "status");
            String outcome = word(answer, "outcome"), retry = answer.isEmpty() ? byKey : word(answer, "retry");
            String told = word(answer, "retry_until");
            if (!told.isEmpty() && told.compareTo(until) < 0) until = told;
            // Believed if no other call is open under the key: the gateway may have forgotten it. A replay is of the one before.
            boolean alone = sent == 1 || sent == 2 && replayed.equals("true");
            boolean sure = outcome.equals("not_refunded") && !look && alone;
            if (sure || status.equals("failed")) sent = 0;
            isFinal = status.equals("succeeded") || status.equals("failed") || retry.equals("no") && outcome.equals("unknown")
                || (retry.equals("no") || retry.equals("corrected")) && (sure || look);
            boolean maySend = sure || (look ? outcome.equals("not_refunded") : utc(Duration.ZERO).compareTo(until) < 0);
            look = !(retry.equals("same_key") && maySend);
            wait = Math.max(1000, pause(after));
        }
        keys.put(name, String.format("{\"key\": \"%s\", \"sent\": %d, \"until\": \"%s\"}", key, sent, until));
        if (sent == 0) keys.remove(name);
        save(path, keys);
        System.out.println(last);
        return status.equals("succeeded") ? 0 : sent == 0 ? 1 : 3;
    }

    public static void main(String[] given) {
        String path = System.getenv("REFUND_KEYS");
        int code = 3; // Java's own exit status would be 1.
        if (path == null || given.length != 5) {
            System.err.println("java Refund.java URL PROVIDER PAYMENT_ID VALUE CURRENCY");
            System.exit(2);
        }
        try (FileChannel lock = FileChannel.open(Path.of(path + ".lock"), CREATE, WRITE)) {
            if (lock.tryLock() == null) throw new IllegalStateException("another run is at work"); // It could make another key.
            code = refund(Path.of(path), given[0], given[1], given[2], given[3], given[4]);
        } catch (Throwable problem) {
            problem.printStackTrace();
        }
        System.exit(code);
    }
}
